"""The study's page, and what the README says of it, from results that are known."""

import math

import pytest
from programs import PYTHON, seeds, study_cost, study_plan, study_report, study_results, study_run
from programs import study_table as table
from study_cases import SAME, finish, plan, result


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
