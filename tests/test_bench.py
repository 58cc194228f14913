"""The benchmarks' own arithmetic, on numbers that are known: ratios, tables and what is left out."""

import csv
import importlib.util
import sys
import time
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Imports a module of bench/, whose results go to tmp_path."""
    monkeypatch.syspath_prepend(BENCH)
    monkeypatch.setenv("TOAST_BENCH_RESULTS", str(tmp_path))
    for name in ("harness", "peers", "report"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module


def test_ratios_are_taken_round_by_round(bench):
    harness = bench("harness")
    times = {"ours": [1.0, 10.0, 1.0, 1.0], "peer": [3.0, 30.0, 3.0, 6.0]}  # a busy round, and one that hit the peer
    assert harness.ratio(times, "ours", "peer") == (3.0, 3.0, pytest.approx(4.2))
    assert harness.spread([5, 1, 4, 2, 3]) == (3, pytest.approx(1.8), pytest.approx(4.2))


@pytest.mark.skipif(torch.cuda.is_available(), reason="of the CPU's clock")
def test_measure_counts_calls_bytes_and_memory(bench, tmp_path, capsys):
    harness = bench("harness")

    def hold():
        torch.empty(3 * 2**20, dtype=torch.uint8)
        time.sleep(0.1)

    cases = {harness.OURS: lambda: time.sleep(0.05), "peer": hold}
    what = {"size": "2 x 3", "dtype": "float32", "work": "sleep"}
    times = harness.measure("suite", cases, **what, num_bytes=4000, rounds=3, calls=2)
    assert min(times[harness.OURS]) >= 0.025
    with (tmp_path / "suite.csv").open() as lines:
        rows = {row["peer"]: row for row in csv.DictReader(lines)}
    assert set(rows) == {harness.OURS, "peer", harness.COPY}
    ours = rows[harness.OURS]
    assert float(rows["peer"]["ours_faster"]) == pytest.approx(2, rel=0.4)
    assert float(rows["peer"]["peak_mb"]) == pytest.approx(3, rel=0.01)
    assert float(ours["gb_s"]) == pytest.approx(4000 / float(ours["p50_ms"]) / 1e6, rel=0.01)
    assert float(rows[harness.COPY]["percent_of_copy"]) == 100
    assert "peer" in capsys.readouterr().out
    harness.measure("suite", cases, **what, rounds=3)
    assert len((tmp_path / "suite.csv").read_text().splitlines()) == 1 + 3 + 2  # rows are added, under one header


@pytest.mark.skipif(torch.cuda.is_available(), reason="of the CPU's clock")
def test_a_burst_that_lost_a_core_is_repeated(bench, monkeypatch):
    harness, calls = bench("harness"), []
    for lost, bursts in (([0, 0], 1), ([0, 1, 1, 1], 2), (range(100), 3)):
        calls.clear()
        readings = iter(lost)
        monkeypatch.setattr(harness, "preemptions", lambda readings=readings: next(readings))
        harness.burst(lambda: calls.append(time.sleep(0.02)))
        assert len(calls) == 2 * bursts


def test_a_peer_with_another_gradient_stops_the_benchmark(bench):
    peers = bench("peers")
    loss = peers.CrossEntropy(16, 50, torch.float32)
    loss.check()
    loss.peers["wrong"] = lambda logits: torch.nn.functional.cross_entropy(logits, loss.target.roll(1))
    with pytest.raises(AssertionError, match="wrong has another gradient"):
        loss.check()


def test_a_peer_that_finds_other_medoids_is_left_out_by_name(bench, capsys):
    peers = bench("peers")
    problem = peers.Medoids(60, 5, 3, "euclidean")
    cases = {peers.OURS: problem.ours, "same": problem.ours, "wrong": lambda: problem.ours() + 1}
    assert set(problem.agreeing(cases)) == {peers.OURS, "same"}
    assert "wrong is left out: it finds other medoids in 3 of 3 classes" in capsys.readouterr().out


def test_the_losses_of_the_benchmarks_are_what_they_say(bench):
    peers = bench("peers")
    blended, listed = peers.Blended(8, 40, torch.bfloat16), peers.TopK(8, 200, torch.float32, k=5)
    for problem in (blended, listed, peers.LongRows(8, 300, torch.bfloat16)):
        problem.check()
    plain = peers.CrossEntropy(8, 40, torch.float32)
    assert plain.bytes("forward") == 8 * 40 * 4
    assert plain.bytes("forward + backward") == 2 * 8 * 40 * 4
    blended = peers.Blended(8, 40, torch.bfloat16)
    blended.target[:] = torch.tensor([1, 1, 1, 2, 2, 2, 3, 3])
    assert blended.bytes("forward + backward") == 40 * 2 * (8 + 3 + 4 + 8)  # logits, three of S, four of Q, gradient


def test_a_missing_peer_is_named(bench, capsys):
    assert bench("peers").left_out("no_such_package")
    assert "no_such_package is left out: ModuleNotFoundError" in capsys.readouterr().out


def write_rows(path, *rows, method=None):
    """A results file of rows "work,size,peer,p50_ms"; each is done by what is measured now, unless told otherwise."""
    method = method or sys.modules["harness"].METHOD
    lines = [f"CPU,{method},float32,{row}" for row in rows]
    path.write_text("\n".join(["device,method,dtype,work,size,peer,p50_ms", *lines]))


def test_exponents_are_fitted_over_the_medians_of_the_runs(bench, tmp_path):
    report = bench("report")
    runs = [f"sweep,{n},toast_kernels,{factor * n**1.5}" for factor in (3, 1000, 2) for n in (1, 10, 100)]
    write_rows(tmp_path / "scaling.csv", *runs)
    assert report.scaling(report.last_runs("scaling")).endswith("| 1: 3, 10: 94.9, 100: 3e+03 | 1.50 |")
    assert report.last_runs("scaling", on_gpu=True) == {}


def test_only_the_last_runs_count_and_only_those_measured_alike(bench, tmp_path):
    report = bench("report")
    write_rows(tmp_path / "loss.csv", *(f"w,s,toast_kernels,{t}" for t in range(8)))
    (case,) = report.last_runs("loss").values()
    assert [row["p50_ms"] for row in case["toast_kernels"]] == ["3", "4", "5", "6", "7"]
    write_rows(tmp_path / "loss.csv", "w,s,toast_kernels,1", method=1)
    assert report.last_runs("loss") == {}


def test_results_elsewhere_leave_the_readmes_alone(bench, tmp_path):
    report = bench("report")
    pages = [BENCH / "README.md", BENCH.parent / "README.md"]
    before = [page.read_text() for page in pages]
    report.main()
    assert [page.read_text() for page in pages] == before
    assert (tmp_path / "tables.md").read_text().strip() == ""
    assert not list(tmp_path.glob("*.png"))


def test_a_run_without_a_peer_shows_none_of_its_old_times(bench, tmp_path):
    report = bench("report")
    runs = ["toast_kernels,2", "old peer,3", "toast_kernels,1", "new peer,4"]
    write_rows(tmp_path / "loss.csv", *(f"w,s,{run}" for run in runs))
    (case,) = report.last_runs("loss").values()
    assert {peer: [row["p50_ms"] for row in rows] for peer, rows in case.items()} == {
        "toast_kernels": ["2", "1"],
        "new peer": ["4"],
    }


def test_ratios_are_shown_with_the_bounds_of_all_runs(bench):
    report = bench("report")

    def run(middle, low, high, ms=8):
        keys = ("ours_faster", "ours_faster_p20", "ours_faster_p80", "p50_ms")
        return dict(zip(keys, map(str, (middle, low, high, ms)), strict=True))

    assert report.faster([run(2, 3, 1)]) == "2.00x (1.00 - 3.00)"
    runs = [run(0.8, 0.5, 1), run(2, 1.6, 4), run(1, 0.9, 1.1)]
    assert report.faster(runs) == "1.00x (0.50 - 4.00)"
    table = report.steps({("step", "s", "d"): {report.OURS: [run(1, 1, 1, 10)], "F.cross_entropy": runs}})
    assert table.endswith("| 10 ms | 1.000x (0.250 - 2.000) F.cross_entropy |")
    table = report.epochs({("w", "1000 rows, 7 classes, by 100", "d"): {report.OURS: [run(1, 1, 1, 50)]}})
    assert table.endswith("| 50 ms | 5 ms |")


def test_the_readmes_have_a_place_for_each_table(bench, monkeypatch, tmp_path):
    report = bench("report")
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- table one -->\nold\n<!-- end -->\nb\n<!-- table two -->\nkept\n<!-- end -->\n")
    report.write_tables(page, {"one": "new"})
    assert page.read_text() == "a\n<!-- table one -->\nnew\n<!-- end -->\nb\n<!-- table two -->\nkept\n<!-- end -->\n"
    with pytest.raises(AssertionError, match="must have one place for the table three"):
        report.write_tables(page, {"three": ""})
