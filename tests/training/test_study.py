"""The study's grid, its choices and its page, from results that are known; and a study that is killed and goes on."""

import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from programs import (
    PYTHON,
    digits,
    image_data,
    seeds,
    study,
    study_cost,
    study_methods,
    study_plan,
    study_report,
    study_results,
    study_run,
)
from programs import study_table as table

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


def test_trials_come_first_then_seed_by_seed_all_methods():
    order = finish(plan(("base", "half"), ("ce", "toast", "ce-1.5"), (0, 1)))
    assert [(spec.regime, spec.method, spec.seed) for spec in order[: len(order) // 2]] == [
        *[("base", "ce", 0)] * 3, *[("base", "toast", 0)] * 3,
        ("base", "ce-1.5", 0), ("base", "ce", 1), ("base", "toast", 1), ("base", "ce-1.5", 1),
    ]  # fmt: skip
    assert {spec.regime for spec in order[len(order) // 2 :]} == {"half"}
    assert len(set(order)) == len(order)


@pytest.mark.parametrize("methods", [study_plan.CORE_METHODS, ("toast",)])
def test_all_the_work_is_counted(methods):
    chosen = plan(("base", "epochs-x4"), methods, (0, 1, 2))
    assert sum(study_plan.work_of(spec.regime, spec.method) for spec in finish(chosen)) == chosen.work()


def test_another_regime_begins_where_the_first_must_wait():
    of_two = plan(("base", "half"))
    assert [spec.regime for spec in of_two.runs({})] == ["base"] * 3 + ["half"] * 3


def test_settings_are_chosen_by_validation_and_never_by_test():
    of_plan, done = plan(), {}
    trials = of_plan.trials("base", "ce", {})
    for trial, val, test in zip(trials, (0.6, 0.7, 0.5), (0.9, 0.1, 0.9), strict=True):
        done[trial] = result(trial, val_top1=val, test_top1=test)
    second = study_methods.METHODS["ce"].trials[1]
    assert of_plan.chosen("base", "ce", done) == second
    assert of_plan.chosen("base", "toast", done) is None
    trials = of_plan.trials("base", "toast", second)
    assert all(f"lr={second['lr']:g}" in trial.settings for trial in trials)
    for trial, val in zip(trials, (0.2, 0.2, 0.3), strict=True):
        done[trial] = result(trial, val_top1=val, test_top1=1 - val)
    assert of_plan.chosen("base", "toast", done) == {**second, **study_methods.METHODS["toast"].trials[2]}


def test_of_equal_accuracies_the_lower_nll_is_chosen():
    of_plan, done = plan(), {}
    for trial, nll in zip(of_plan.trials("base", "ce", {}), (3, 2, 1), strict=True):
        done[trial] = result(trial) | {"val_nll": nll}
    assert of_plan.chosen("base", "ce", done) == study_methods.METHODS["ce"].trials[2]


def test_methods_without_a_meaning_for_mixed_images_are_left_out():
    assert plan(methods=("ce", "ps-kd", "dlb")).methods_under("mixup") == ["ce", "dlb"]


def test_a_table_keeps_its_whole_lines_and_types(tmp_path):
    path = tmp_path / "t.csv"
    assert table.read(path) == []
    rows = [{"name": "a b", "count": 3, "share": 1 / 3}, {"name": "c", "count": 4, "share": 2.0}]
    for row in rows:
        table.append(path, ("name", "count", "share"), [row])
    assert table.read(path) == [{"name": "a b", "count": 3, "share": 0.333333}, {"name": "c", "count": 4, "share": 2}]
    path.write_text(path.read_text()[:-3])  # a kill in mid-line
    assert [row["name"] for row in table.read(path)] == ["a b"]
    table.append(path, ("name", "count", "share"), rows[1:])
    assert [row["name"] for row in table.read(path)] == ["a b", "c"]


def test_the_interval_is_students():
    """For 1, 2, 6: mean 3, standard deviation sqrt(7), t(0.975; 2) = 4.302653 (printed tables)."""
    difference = seeds.Difference.of([1.0, 2.0, 6.0])
    assert difference.mean == 3
    assert difference.half == pytest.approx(4.302653 * math.sqrt(7) / math.sqrt(3), rel=1e-6)
    assert difference.sign == 0
    assert seeds.Difference.of([3.0]).half is None
    assert seeds.Difference.of([-1.0, -1.1, -0.9]).sign == -1
    assert seeds.Difference.of([-1.0, -1.1]).sign == 0  # too few seeds for a verdict


@pytest.fixture
def folder(tmp_path):
    """Two regimes; under the base TOAST is 2, 3 and 4 points better and longer cross-entropy 7, and neither has a run
    under the other."""
    done = {}
    finish(plan(methods=("ce", "toast", "ce-1.5")), done)
    finish(plan(("half",), ("ce",)), done)
    for spec, row in done.items():
        row["test_top1"] = 0.5 + 0.1 * spec.seed
        if spec.method == "ce-1.5":
            row["test_top1"] += 0.07
        if spec.method == "toast":
            row["test_top1"] += 0.02 + 0.01 * spec.seed
            row["test_nll"] -= 0.2 + 0.01 * spec.seed
            row["forward_rows"] = 150
    table.append(tmp_path / "study" / "results.csv", study_run.COLUMNS, done.values())
    return tmp_path / "study"


def test_the_page_says_what_the_table_does(folder):
    cost = {**SAME, "method": "toast", "ms": 30, "ratio": 1.25, "forward_rows": 1.5, "peak_mb": 100, "rounds": 15}
    rows = [{name: row.get(name, 0) for name in study_cost.COST_COLUMNS} for row in (cost | {"ratio": 1.75}, cost)]
    table.append(folder / "cost.csv", study_cost.COST_COLUMNS, rows)
    page = study_report.text(folder, folder.parent / "docs" / "study.md")
    half = 4.302653 * 1 / math.sqrt(3)
    assert f"**+3.00 ± {half:.2f}**" in page
    assert "| TOAST, both stages | 3 | 63.00 ± 11.00 |" in page
    assert "| 1.50 |" in page
    top1, longer, nll = f"**+3.00 ± {half:.2f}**", f"**-4.00 ± {half:.2f}**", f"**-0.210 ± {half / 100:.3f}**"
    of_nll = f"1 / 0 of 1; {nll} over 1"
    assert (
        f"| TOAST, both stages | 1 / 0 of 1; {top1} over 1 | {of_nll} | 0 / 1 of 1; {longer} over 1 | {of_nll} "
        "| 1.5 | 1.25 |" in page
    )
    assert (
        "| cross-entropy for 1.5 times the epochs | 1 / 0 of 1; **+7.00 ± 0.00** over 1 "
        "| 0 / 0 of 1; +0.000 ± 0.000 over 1 | - | - | 1.5 | - |" in page
    )
    nll += " on average over 1 regimes"
    assert (
        "- **TOAST, both stages**, for 1.5 times the forward rows and 1.25 times the time of a step: "
        f"at as many new images top-1 {top1} points and NLL {nll}, top-1 better / worse in 1 / 0 of 1; "
        f"at as many forward rows top-1 {longer} points and NLL {nll}, top-1 better / worse in 0 / 1 of 1.\n" in page
    )
    assert "| half of the data | 3 | - | - |" in page
    assert "Not there yet: four times the epochs; eight times the epochs; a quarter of the data;" in page
    assert "a better top-1 in 1 of 1 comparisons" in page
    assert "told apart in 0, a worse one in 0." in page
    assert "(../study/benefit.png)" in page
    assert "| TOAST, both stages | base: all data, the usual augmentation | 1.5 | **-4.00" in page


@pytest.mark.parametrize(("regimes", "best"), [(("base",), "CS-KD"), (("base", "half"), "DLB")])
def test_the_best_other_method_has_the_best_average_over_the_most_regimes(tmp_path, regimes, best):
    """CS-KD is 2 points better under the base alone, DLB 1 point under all regimes."""
    done = {}
    finish(plan(regimes, ("ce", "dlb", "toast", "ce-1.5", "ce-2")), done)
    finish(plan(("base",), ("ce", "cs-kd")), done)
    for spec, row in done.items():
        row["test_top1"] += {"dlb": 0.01, "cs-kd": 0.02}.get(spec.method, 0)
    table.append(tmp_path / "results.csv", study_run.COLUMNS, done.values())
    page = study_report.text(tmp_path, tmp_path / "study.md")
    toast, other = [line for line in page.splitlines() if line.startswith("- **")]
    assert toast.startswith("- **TOAST, both stages**")
    assert other.startswith(f"- **{best}, ")
    assert f"a worse one in {len(regimes) + 1}: DLB, last mini-batch, under base: all data, the" in page


def test_of_mixed_images_no_training_accuracy_is_shown(folder):
    done = {}
    finish(plan(("mixup",), ("ce",)), done)
    table.append(folder / "results.csv", study_run.COLUMNS, done.values())
    page = study_report.text(folder, folder.parent / "docs" / "study.md")
    _, _, mixup = page.partition("**Mixup**")
    assert "| 1.00 | 25.0 ± 0.0 |" in page
    assert "| 1.00 | - |" in mixup
    assert "25.0 ± 0.0 |" not in mixup


def test_other_networks_are_rows_of_one_table(folder):
    """ResNet with two seeds; TOAST is 1 and 2 points worse, longer training 1 point better. A network that has trials
    alone has no row."""
    done = {}
    of_resnet = study_plan.Plan({**SAME, "backbone": "resnet"}, ("base",), ("ce", "toast", "ce-1.5"), (0, 1))
    finish(of_resnet, done)
    for spec, row in done.items():
        row["test_top1"] += {"toast": -0.01 - 0.01 * spec.seed, "ce-1.5": 0.01}.get(spec.method, 0)
    vit = study_plan.Plan({**SAME, "backbone": "vit"}, ("base",), ("ce",), (0,)).trials("base", "ce", {})[0]
    table.append(folder / "results.csv", study_run.COLUMNS, [*done.values(), result(vit)])
    page = study_report.text(folder, folder.parent / "docs" / "study.md")
    lines = [line for line in page.splitlines() if line.startswith("| glyphs, 10 classes |")]
    base = study_plan.REGIMES["base"].title
    assert lines[0].startswith(f"| glyphs, 10 classes | resnet | 1 | {base} | cross-entropy | lr 0.01, ")
    assert lines[1].endswith(
        "| 2 | 48.50 ± 0.71 | 1.000 ± 0.000 | -1.50 ± 6.35 | +0.000 ± 0.000 | -2.50 ± 6.35 | +0.000 ± 0.000 |"
    )
    assert lines[2].endswith("| +1.00 ± 0.00 | +0.000 ± 0.000 |  |  |")
    assert len(lines) == 3
    assert page.count("### Scores") == 1


def test_trials_that_were_not_chosen_do_not_count(folder):
    of_plan = plan(methods=("ce", "toast", "ce-1.5"))
    rows = table.read(folder / "results.csv")
    losers = [row for row in rows if row["method"] == "toast" and row["seed"] == 0][1:]
    for row in losers:
        row["test_top1"] = 0.99
    results = study_results.Results(SAME, rows)
    assert results.difference("base", "toast", "top1").mean == pytest.approx(0.03)
    assert results.plan.methods == of_plan.methods


def test_an_average_over_regimes_is_taken_seed_by_seed():
    """Gains of 1, 2, 3 points in one regime and 3, 2, 1 in the other: each seed's mean is 2, without any spread."""
    done = {}
    finish(plan(("base", "half")), done)
    for spec, row in done.items():
        if spec.method == "toast":
            row["test_top1"] += 0.01 * (1 + spec.seed if spec.regime == "base" else 3 - spec.seed)
    difference, regimes = study_results.Results(SAME, list(done.values())).over_regimes("toast", "top1")
    assert (regimes, difference.pairs) == (2, 3)
    assert (difference.mean, difference.half) == (pytest.approx(0.02), pytest.approx(0, abs=1e-12))


def test_pictures_and_page_are_written(folder):
    page = folder.parent / "docs" / "study.md"
    study_report.write(folder, page)
    assert page.read_text() == study_report.text(folder, page)
    assert (folder / "benefit.png").stat().st_size > 10_000


def test_the_page_is_what_the_results_make_it():
    root = PYTHON.parent
    page = root / "docs" / "study.md"
    assert page.read_text() == study_report.text(root / "study", page)


def test_the_readme_says_what_the_study_found():
    readme = " ".join((PYTHON.parent / "README.md").read_text().split())
    results = {result.same["classes"]: result for result in study_results.all_results(PYTHON.parent / "study")
        if result.same["data"] == "glyphs" and result.same["backbone"] == "cnn"}  # fmt: skip
    few = results[400]

    def points(difference):
        return f"{100 * abs(difference.mean):.1f} ± {100 * difference.half:.1f}"

    def over_ce(regime, result=few):
        return points(result.difference(regime, "toast", "top1"))

    def at_equal_rows(method):
        other = few.of_as_many_rows(method)
        found = {regime: few.difference(regime, method, "top1", other) for regime in few.regimes if other}
        return {regime: d for regime, d in found.items() if d and d.pairs >= seeds.FEW_SEEDS}

    signs = [difference.sign for difference in at_equal_rows("toast").values()]
    every = {method: at_equal_rows(method) for method in few.plan.methods}
    assert f"gains {points(few.over_regimes('toast', 'top1')[0])} points of top-1 on average of six" in readme
    assert f"{over_ce('base', results[3250])} with 3,250 classes" in readme
    assert f"loses {over_ce('noise-40')} with 40% wrong labels" in readme
    assert f"better in {signs.count(-1)} of {len(signs)} conditions, worse in none" in readme
    assert 1 not in signs
    assert f"Of {sum(map(len, every.values()))} comparisons two favour replay, both with 40% wrong labels" in readme
    won = {(m, regime) for m, found in every.items() for regime, d in found.items() if d.sign > 0}
    assert won == {("stage2-half", "noise-40"), ("dlb", "noise-40")}
    assert f"the hard half distilled ({points(every['stage2-half']['noise-40'])})" in readme


def test_a_page_of_trials_alone_has_no_scores(tmp_path):
    trials = plan().trials("base", "ce", {})[:2]
    table.append(tmp_path / "results.csv", study_run.COLUMNS, map(result, trials))
    page = study_report.text(tmp_path, tmp_path / "study.md")
    assert "2 runs so far, trials included" in page
    assert "Not there yet: base: all data, the usual augmentation; four times" in page
    assert "### Scores" not in page


def test_a_page_without_results(tmp_path):
    study_report.write(tmp_path / "study", tmp_path / "study.md")
    assert "## Methods" in (tmp_path / "study.md").read_text()


SMALL = (
    "--classes 12 --image-size 16 --batch-size 32 --epochs 2 --regimes base --methods ce ps-kd --seeds 0 --workers 1 "
    "--out {0}"
)


@pytest.fixture
def handlers(monkeypatch):
    """Those of signals stay as they are."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)


@pytest.mark.parametrize(
    "end",
    [pytest.param(signal.SIGKILL, id="SIGKILL"), pytest.param(signal.SIGINT, id="SIGINT", marks=pytest.mark.more)],
)
def test_a_killed_study_goes_on_and_is_repeated(handlers, monkeypatch, tmp_path, capsys, end):
    arguments = SMALL.format(tmp_path).split()
    command = [sys.executable, str(PYTHON / "study.py"), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        process.stdout.readline()
        workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
        process.send_signal(end)
        process.communicate(timeout=120)
    deadline = time.monotonic() + 60
    while any(map(_alive, workers.stdout.split())) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(map(_alive, workers.stdout.split())), "workers outlive it"

    before = (tmp_path / "results.csv").read_text()
    rows = table.read(tmp_path / "results.csv")
    assert 1 <= len(rows) < 6
    assert study.main(arguments) == 0
    assert (tmp_path / "results.csv").read_text().startswith(before.rpartition("\n")[0])
    rows = table.read(tmp_path / "results.csv")
    assert len(rows) == len(study_plan.known(rows)) == 6
    assert "100%" in capsys.readouterr().out.splitlines()[-1]
    assert "12 classes" in (tmp_path / "study.md").read_text()

    monkeypatch.setattr(study, "STUDY", tmp_path)
    assert study.main(["repeat", "--workers", "1", "--out", str(tmp_path / "again")]) == 0
    again = table.read(tmp_path / "again" / "results.csv")
    assert [row | {"seconds": 0} for row in again] == [row | {"seconds": 0} for row in rows]


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_no_time_no_runs(tmp_path):
    study.run(plan(), tmp_path, PYTHON.parent / "data", workers=1, hours=0)
    assert not (tmp_path / "results.csv").exists()


def test_data_that_are_missing_end_it_with_a_message(handlers, tmp_path, capfd):
    assert study.main(f"{SMALL} --data folder:nowhere".format(tmp_path).split()) == 2
    errors = capfd.readouterr().err
    assert "study.py: error: no folder nowhere" in errors
    assert "Traceback" not in errors


def test_an_image_size_the_networks_cannot_take_is_refused(capsys):
    with pytest.raises(SystemExit):
        study.parse(["--image-size", "18"])
    assert "--image-size must be a multiple of 4, got 18" in capsys.readouterr().err


def test_a_study_is_not_repeated_into_itself(capsys):
    with pytest.raises(SystemExit):
        study.parse(["repeat"])
    assert "repeat needs --out" in capsys.readouterr().err


@pytest.mark.more
def test_the_cost_of_a_step_is_relative_to_cross_entropy(monkeypatch, tmp_path):
    monkeypatch.setattr(study_cost, "METHODS_TIMED", ["ce", "cs-kd"])
    monkeypatch.setattr(study_cost, "ROUNDS", 2)
    rows = study_cost.measure({**SAME, "classes": 12, "batch_size": 32}, PYTHON.parent / "data")
    ce, cs_kd = rows
    assert tuple(ce) == study_cost.COST_COLUMNS
    assert (ce["ratio"], ce["forward_rows"], cs_kd["forward_rows"]) == (1, 1, 2)
    assert cs_kd["ratio"] > 1
    assert ce["peak_mb"] > 50
    table.append(tmp_path / "cost.csv", study_cost.COST_COLUMNS, rows)
    assert "| CS-KD, a classmate | 12 |" in study_report.text(tmp_path, tmp_path / "study.md")


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(image_data.DataError, match="digits needs scikit-learn"):
        digits.load()


def test_digits_are_dealt_out_in_bytes(monkeypatch):
    values = torch.arange(100 * 64).reshape(100, 8, 8) % 17
    made = type("", (), {"images": values.double().numpy(), "target": (torch.arange(100) % 10).numpy()})
    module = type(sys)("sklearn.datasets")
    module.load_digits = lambda: made
    monkeypatch.setitem(sys.modules, "sklearn", type(sys)("sklearn"))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", module)
    data = digits.load()
    assert [len(split) for split in data.splits().values()] == [60, 20, 20]
    assert data.train.images.dtype == torch.uint8
    seen = torch.cat([split.images for split in data.splits().values()]).flatten(1)
    expected = (values.flatten(1) * 255 / 16).round()
    assert sorted(seen.tolist()) == sorted(expected.long().tolist())
