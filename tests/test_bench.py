"""The benchmarks' own arithmetic, on numbers that are known: ratios, tables, limits, and what stops make gpu."""

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
    for name in ("harness", "peers", "report", "gpu"):
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


def test_a_peer_with_another_gradient_stops_the_benchmark(bench):
    peers = bench("peers")
    loss = peers.CrossEntropy(16, 50, torch.float32)
    loss.check()
    loss.peers["wrong"] = lambda logits: torch.nn.functional.cross_entropy(logits, loss.target.roll(1))
    with pytest.raises(AssertionError, match="wrong has another gradient"):
        loss.check()


def test_a_peer_that_finds_other_medoids_stops_the_benchmark(bench):
    peers = bench("peers")
    problem = peers.Medoids(60, 5, 3, "euclidean")
    problem.check({peers.OURS: problem.ours})
    with pytest.raises(AssertionError, match="wrong finds other medoids"):
        problem.check({peers.OURS: problem.ours, "wrong": lambda: problem.ours() + 1})


def test_the_losses_of_the_benchmarks_are_what_they_say(bench):
    peers = bench("peers")
    for problem in (peers.Blended(8, 40, torch.bfloat16), peers.TopK(8, 200, torch.float32, k=5)):
        problem.check()
    plain = peers.CrossEntropy(8, 40, torch.float32)
    assert plain.bytes("forward") == 8 * 40 * 4
    assert plain.bytes("forward + backward") == 2 * 8 * 40 * 4
    assert peers.Blended(8, 40, torch.bfloat16).bytes("forward + backward") == 8 * 40 * 7  # z + S + Q / 2 + gradient


def test_a_missing_peer_is_named(bench, capsys):
    assert bench("peers").left_out("no_such_package")
    assert "no_such_package is left out: ModuleNotFoundError" in capsys.readouterr().out


def test_exponents_are_fitted_and_the_newest_row_counts(bench, tmp_path):
    report = bench("report")
    header = "device,work,size,dtype,peer,p50_ms"
    rows = [f"CPU,sweep,{n},float32,toast_kernels,{3 * n**1.5}" for n in (1, 10, 100)]
    (tmp_path / "scaling.csv").write_text("\n".join([header, "CPU,sweep,10,float32,toast_kernels,7", *rows]))
    assert report.scaling(report.newest("scaling")).endswith("| 1.50 |")
    assert report.newest("scaling", on_gpu=True) == {}


def test_the_readmes_have_a_place_for_each_table(bench, monkeypatch, tmp_path):
    report = bench("report")
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- table one -->\nold\n<!-- end -->\nb\n<!-- table two -->\nkept\n<!-- end -->\n")
    report.write_tables(page, {"one": "new"})
    assert page.read_text() == "a\n<!-- table one -->\nnew\n<!-- end -->\nb\n<!-- table two -->\nkept\n<!-- end -->\n"
    with pytest.raises(AssertionError, match="must have one place for the table three"):
        report.write_tables(page, {"three": ""})


class TestGpu:
    def test_parts_and_limits(self, bench):
        gpu = bench("gpu")
        everything = gpu.steps(None, "python", True, "compute-sanitizer")
        names = [step.name for step in everything]
        assert names == ["install", "tests", "memcheck", "racecheck", "loss", "medoids", "training", "tables"]
        assert [step.name for step in everything if step.gate] == ["install", "tests", "memcheck", "racecheck"]
        part = [step.name for step in gpu.steps("medoids", "python", False, None)]
        assert part == ["install", "tests", "medoids", "tables"]
        for step in everything:
            files = [word for word in step.command if word.endswith(".py")]
            assert all((BENCH.parent / file).exists() for file in files), step

    def test_nothing_is_timed_behind_a_failing_gate(self, bench, capfd, tmp_path):
        gpu = bench("gpu")
        run = [
            gpu.Step("tests", [sys.executable, "-c", "raise SystemExit(3)"], 20, gate=True),
            gpu.Step("loss", [sys.executable, "-c", "print('timed')"], 20),
        ]
        assert not gpu.run_all(run, {}, time.monotonic() + 60)
        out = capfd.readouterr().out
        assert "FAILED with 3" in out
        assert "timed" not in out.replace("nothing was timed", "")

    def test_a_step_that_hangs_is_ended_and_the_next_runs(self, bench, capfd):
        gpu = bench("gpu")
        run = [
            gpu.Step("loss", [sys.executable, "-c", "import time; time.sleep(60)"], 1),
            gpu.Step("tables", [sys.executable, "-c", "print('drawn')"], 20),
        ]
        start = time.monotonic()
        assert not gpu.run_all(run, {}, start + 60)
        assert time.monotonic() - start < 20
        out = capfd.readouterr().out
        assert "ran out of time" in out
        assert "drawn" in out

    @pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
    def test_without_a_gpu_it_says_so(self, bench, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["gpu.py"])
        with pytest.raises(SystemExit):
            bench("gpu").main()
        assert "sees no GPU" in capsys.readouterr().err
