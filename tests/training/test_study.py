"""The study's grid and its choices, from results that are known; and a study that is killed and goes on."""

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
)
from programs import study_table as table
from study_cases import SAME, finish, plan, result


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
