"""Plans of a small study, and results of its runs that nothing was run for."""

from programs import study_plan, study_run

SAME = {"data": "glyphs", "classes": 10, "image_size": 16, "backbone": "cnn", "batch_size": 16, "epochs": 1}


def plan(regimes=("base",), methods=("ce", "toast"), seeds=(0, 1, 2)):
    return study_plan.Plan(SAME, regimes, methods, seeds)


def result(spec, val_top1=0.5, test_top1=0.5, test_nll=1.0, forward_rows=100):
    row = dict.fromkeys(study_run.COLUMNS, 0.25) | {name: getattr(spec, name) for name in study_run.KEY}
    return row | {
        "val_top1": val_top1, "test_top1": test_top1, "test_nll": test_nll, "forward_rows": forward_rows,
        "trained_epochs": 1, "steps": 6, "new_rows": 100,
    }  # fmt: skip


def finish(of_plan, done=None, **scores):
    """Runs everything, with the same scores for all, until nothing is pending; the order of the runs."""
    done, order = done if done is not None else {}, []
    while pending := [spec for spec in of_plan.runs(done) if spec not in done]:
        order.append(pending[0])
        done[pending[0]] = result(pending[0], **scores)
    return order
