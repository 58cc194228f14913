"""The benchmarks' own arithmetic, on numbers that are known: ratios, tables, what the checks see, what is left out."""

import csv
import importlib.util
import sys
import time
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parent.parent / "bench"
on_a_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="of a CPU's clock and backend")


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Imports a module of bench/, whose results go to tmp_path."""
    monkeypatch.syspath_prepend(BENCH)
    monkeypatch.setenv("TOAST_BENCH_RESULTS", str(tmp_path))
    for path in BENCH.glob("*.py"):
        if path.stem != "conftest":
            monkeypatch.delitem(sys.modules, path.stem, raising=False)
    return importlib.import_module


def rows_of(path):
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_ratios_are_taken_round_by_round(bench):
    harness = bench("harness")
    times = {"ours": [1.0, 10.0, 1.0, 1.0], "peer": [3.0, 30.0, 3.0, 6.0]}  # a busy round, and one that hit the peer
    assert harness.ratio(times, "ours", "peer") == (3.0, 3.0, pytest.approx(4.2))
    assert harness.spread([5, 1, 4, 2, 3]) == (3, pytest.approx(1.8), pytest.approx(4.2))


@on_a_cpu
def test_measure_counts_calls_bytes_flops_and_memory(bench, tmp_path, capsys):
    harness = bench("harness")

    def hold():
        torch.empty(3 * 2**20, dtype=torch.uint8)
        time.sleep(0.1)

    cases = {harness.OURS: lambda: time.sleep(0.05), "peer": hold}
    what = {"size": "2 x 3", "dtype": "float32", "work": "sleep"}
    products = (lambda: time.sleep(0.025), 2_000_000)
    times = harness.measure("suite", cases, **what, num_bytes=4000, flops=1_000_000, products=products, rounds=3)
    assert min(times[harness.OURS]) >= 0.05
    rows = {row["peer"]: row for row in rows_of(tmp_path / "suite.csv")}
    assert set(rows) == {harness.OURS, "peer", harness.COPY, harness.PRODUCTS}
    ours = rows[harness.OURS]
    assert ours["backend"] == "cpu"
    assert float(rows["peer"]["ours_faster"]) == pytest.approx(2, rel=0.4)
    assert float(rows["peer"]["peak_mb"]) == pytest.approx(3, rel=0.01)
    assert float(ours["gb_s"]) == pytest.approx(4000 / float(ours["p50_ms"]) / 1e6, rel=0.01)
    assert float(ours["gflop_s"]) == pytest.approx(1 / float(ours["p50_ms"]), rel=0.01)
    assert float(ours["percent_of_mm"]) == pytest.approx(25, rel=0.4)  # half of the flops in twice the time
    assert float(rows[harness.COPY]["of_copy"]) == 1
    assert float(ours["of_copy"]) > 100
    assert "peer" in capsys.readouterr().out
    times = harness.measure("suite", cases, **what, rounds=3, calls=2)
    assert min(times[harness.OURS]) < 0.05
    assert len(rows_of(tmp_path / "suite.csv")) == 4 + 2  # rows are added, under one header


@on_a_cpu
def test_the_sizes_of_a_sweep_take_turns(bench, monkeypatch, tmp_path):
    harness, order = bench("harness"), []
    monkeypatch.setattr(harness, "burst", lambda case: case())
    cases = {size: lambda size=size: order.append(size) or 1.0 for size in (1, 2)}
    harness.sweep("suite", cases, dtype="float32", work="w", rounds=9)
    assert all({first, second} == {1, 2} for first, second in zip(order[::2], order[1::2], strict=True))
    assert set(order[::2]) == {1, 2}  # in no fixed order
    assert [row["size"] for row in rows_of(tmp_path / "suite.csv")] == ["1", "2"]


@on_a_cpu
def test_a_burst_that_lost_a_core_is_repeated(bench, monkeypatch):
    harness, calls = bench("harness"), []
    for lost, bursts in (([0, 0], 1), ([0, 1, 1, 1], 2), (range(100), 3)):
        calls.clear()
        readings = iter(lost)
        monkeypatch.setattr(harness, "preemptions", lambda readings=readings: next(readings))
        harness.burst(lambda: calls.append(time.sleep(0.02)))
        assert len(calls) == 2 * bursts


def test_results_of_two_kinds_do_not_mix(bench, tmp_path):
    results = bench("results")
    results.append("suite", [{"work": "w"}])
    path = tmp_path / "suite.csv"
    path.write_text(path.read_text().replace("backend,", "", 1))
    with pytest.raises(AssertionError, match="has other columns"):
        results.append("suite", [{"work": "w"}])


@on_a_cpu
def test_the_reference_is_never_published_as_ours(bench, monkeypatch):
    harness = bench("harness")
    assert harness.backend_of_ours() == "cpu"
    monkeypatch.setattr(harness.backends, "choose", lambda *_: "reference")
    with pytest.raises(AssertionError, match="would run on 'reference'"):
        harness.backend_of_ours()


CPUINFO = Path("/proc/cpuinfo")


@on_a_cpu
@pytest.mark.skipif(not CPUINFO.exists() or " avx2 " not in CPUINFO.read_text(), reason="needs AVX2")
def test_the_loss_is_at_least_twice_as_fast_as_eager(bench):
    """On one thread, by rounds that time both; it is some eight times as fast. test_instruction_counts.py is finer, but
    cannot count AVX-512."""
    harness, loss_peers = bench("harness"), bench("loss_peers")
    loss, threads = loss_peers.Blended(1024, 1000, torch.float32), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cases = {name: loss.gradient_case(name) for name in (harness.OURS, "eager")}
        times = harness.interleaved(cases, rounds=9, seconds=20)
    finally:
        torch.set_num_threads(threads)
    assert harness.ratio(times, harness.OURS, "eager")[0] >= 2


def test_a_peer_with_another_gradient_stops_the_benchmark(bench):
    loss_peers = bench("loss_peers")
    loss = loss_peers.CrossEntropy(16, 50, torch.float32)
    loss.peers = {loss_peers.OURS: loss.peers[loss_peers.OURS]}
    loss.check()
    loss.peers["wrong"] = lambda logits: torch.nn.functional.cross_entropy(logits, loss.target.roll(1))
    with pytest.raises(AssertionError, match="wrong has another loss or gradient"):
        loss.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(
    "wrong",
    [
        "nothing", "alpha 0.395 for 0.4", "T 2.98 for 3", "a row 2% off", "the smaller half of the elements 0",
        "the loss without a gradient",
    ],
)  # fmt: skip
def test_the_check_sees_small_errors(bench, monkeypatch, dtype, wrong):
    loss_peers = bench("loss_peers")
    loss = loss_peers.Blended(16, 400, dtype)

    def eager(logits):
        off = 1.001 if "without" in wrong and not torch.is_grad_enabled() else 1
        with monkeypatch.context() as patch:
            patch.setattr(loss_peers, "ALPHA", 0.395 if "alpha" in wrong else 0.4)
            patch.setattr(loss_peers, "TEMPERATURE", 2.98 if "T" in wrong else 3.0)
            return off * loss.eager(logits)

    def with_gradient(logits):
        logits.requires_grad_()
        value = eager(logits)
        (gradient,) = torch.autograd.grad(value, logits)
        if "half" in wrong:
            gradient = torch.where(gradient.abs() > gradient.abs().median(), gradient, 0)
        if "row" in wrong:
            gradient[3] *= 1.02
        return value.detach(), gradient

    loss.peers = {loss_peers.OURS: loss.ours, "eager": eager}
    loss.with_gradient_by_hand["eager"] = with_gradient
    if wrong == "nothing":
        loss.check()
    else:
        with pytest.raises(AssertionError, match="eager has another loss"):
            loss.check()


def test_each_measure_of_disagreement_sees_what_the_others_do_not(bench):
    disagreement, one = bench("loss_peers").disagreement, torch.tensor(1.0)
    gradient = torch.full((100, 1000), 1e-6)
    gradient[0, 0] = 1.0
    small_row, small_elements = gradient.clone(), gradient.clone()
    small_row[1] *= 2
    small_elements[gradient < 1] = 0
    assert max(disagreement(one, gradient, one, gradient).values()) == 0
    seen = disagreement(one, small_row, one, gradient)
    assert seen["row"] == pytest.approx(1)
    assert seen["norm"] < 1e-4
    assert disagreement(one, small_elements, one, gradient)["element"] == pytest.approx(1, abs=1e-4)
    assert disagreement(1.5 * one, gradient, one, gradient)["loss"] == 0.5


def test_a_peer_that_finds_other_medoids_is_left_out_by_name(bench, capsys):
    peers = bench("medoid_peers")
    problem = peers.Medoids(60, 5, 3, "euclidean")
    cases = {peers.OURS: problem.ours, "same": problem.ours, "wrong": lambda: problem.ours() + 1}
    assert set(problem.agreeing(cases)) == {peers.OURS, "same"}
    assert "wrong is left out: it finds other medoids in 3 of 3 classes" in capsys.readouterr().out


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean"])
def test_some_medoids_are_held_against_float64(bench, monkeypatch, metric):
    problem = bench("medoid_peers").Medoids(200, 5, 4, metric, separated=True)
    problem.check_some()
    found = problem.ours()
    monkeypatch.setattr(problem, "ours", lambda: found.roll(1))
    with pytest.raises(AssertionError, match="has another medoid"):
        problem.check_some()


def test_flops_of_medoids(bench):
    medoids = bench("medoid_peers").Medoids
    pairs = sum(n * n for n in torch.bincount(medoids(60, 5, 3, "euclidean").labels).tolist())
    assert medoids(60, 5, 3, "euclidean").flops == 2 * 5 * pairs
    assert medoids(60, 5, 3, "cityblock").flops == 5 * pairs
    assert medoids(60, 5, 3, "cosine").flops == 6 * 60 * 5
    product, flops = medoids(60, 5, 3, "euclidean").products()
    product()
    assert flops == 3 * 2 * 20 * 20 * 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
def test_the_losses_of_the_benchmarks_are_what_they_say(bench, monkeypatch, dtype):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # the suites check what is compiled
    peers = bench("loss_peers")
    for problem in (
        peers.CrossEntropy(8, 40, dtype), peers.Blended(8, 40, dtype), peers.TopK(8, 200, dtype, k=5),
        peers.LongRows(8, 300, dtype),
    ):  # fmt: skip
        problem.check()


def test_bytes_of_losses(bench):
    peers = bench("loss_peers")
    plain = peers.CrossEntropy(8, 40, torch.float32)
    assert plain.bytes("forward") == 8 * 40 * 4
    assert plain.bytes("forward + backward") == 2 * 8 * 40 * 4
    blended = peers.Blended(8, 40, torch.bfloat16)
    blended.target[:] = torch.tensor([1, 1, 1, 2, 2, 2, 3, 3])
    assert blended.bytes("forward + backward") == 40 * 2 * (8 + 3 + 4 + 8)  # logits, three of S, four of Q, gradient


def test_a_missing_peer_is_named(bench, capsys):
    assert bench("peers").left_out("no_such_package")
    assert "no_such_package is left out: ModuleNotFoundError" in capsys.readouterr().out


def write_rows(suite, *rows, **same):
    """Adds rows (run, work, size, peer, p50_ms) of one configuration to a suite's results."""
    results = sys.modules["results"]
    keys = ("run", "work", "size", "peer", "p50_ms")
    same = {"device": "CPU", "threads": 2, "method": results.METHOD, "dtype": "float32", "peak_mb": 1} | same
    results.append(suite, [same | dict(zip(keys, row, strict=True)) for row in rows])


def medians(case):
    return {peer: [row["p50_ms"] for row in rows] for peer, rows in case.items()}


def test_exponents_are_fitted_over_the_medians_of_the_runs(bench):
    report, work = bench("report"), "medoids: rows of a class"
    for run, factor in (("1", 3), ("2", 1000), ("3", 2)):
        write_rows("scaling", *((run, work, n, report.OURS, factor * n**1.5) for n in (1, 10, 100)))
        write_rows("scaling", (run, work, 1000, report.OURS, 3e5))
    table = bench("tables").scaling(report.last_runs("scaling"))
    assert table.endswith("| 1: 3, 10: 94.9, 100: 3e+03, 1000: 3e+05 | 2 | 1.65 | 2.00 |")
    assert report.last_runs("scaling", on_gpu=True) == {}


def test_every_sweep_has_an_expected_exponent(bench):
    scaling = bench("bench_scaling")
    sweeps = [f"loss: {what}" for what in scaling.LOSSES] + [f"medoids: {what}" for what in scaling.MEDOIDS]
    assert sweeps == list(bench("tables").EXPECTED)


def test_only_the_last_runs_count_and_only_those_measured_alike(bench):
    report = bench("report")
    write_rows("loss", *((f"{t}", "w", "s", report.OURS, t) for t in range(8)))
    (case,) = report.last_runs("loss").values()
    assert medians(case) == {report.OURS: ["3", "4", "5", "6", "7"]}
    write_rows("loss", ("9", "w", "s", report.OURS, 1), method=report.results.METHOD - 1)
    assert report.last_runs("loss") == {("w", "s", "float32"): case}


@pytest.mark.parametrize("other", [{"device": "CPU 2"}, {"threads": 1}, {"malloc": "keeps"}, {"torch": "2.0"}], ids=str)
def test_runs_of_two_configurations_are_not_pooled(bench, other):
    report = bench("report")
    write_rows("loss", ("1", "w", "s", report.OURS, 1), ("1", "w", "other", report.OURS, 1))
    write_rows("loss", ("2", "w", "s", report.OURS, 2), **other)
    write_rows("medoids", ("1", "w", "s", report.OURS, 1))
    (case,) = report.last_runs("loss").values()
    assert medians(case) == {report.OURS: ["2"]}
    assert report.last_runs("medoids") == {}


def test_a_run_without_a_peer_shows_none_of_its_old_times(bench):
    report = bench("report")
    write_rows("loss", ("1", "w", "s", report.OURS, 2), ("1", "w", "s", "old peer", 3))
    write_rows("loss", ("2", "w", "s", report.OURS, 1), ("2", "w", "s", "new peer", 4))
    (case,) = report.last_runs("loss").values()
    assert medians(case) == {report.OURS: ["2", "1"], "new peer": ["4"]}


def test_the_committed_pages_are_made_of_the_committed_results(bench, monkeypatch, tmp_path):
    report = bench("report")
    monkeypatch.setattr(report.results, "FOLDER", BENCH / "results")
    for page, of_page in report.all_tables().items():
        copy = tmp_path / "page.md"
        copy.write_text(page.read_text())
        report.write_tables(copy, of_page)
        assert copy.read_text() == page.read_text(), f"{page} is not what bench/report.py makes of bench/results"
        assert page.read_text().count("<!-- table ") == len(of_page)


def test_results_elsewhere_leave_the_readmes_alone(bench, tmp_path):
    report = bench("report")
    pages = [BENCH / "README.md", BENCH.parent / "README.md"]
    before = [page.read_text() for page in pages]
    report.main()
    assert [page.read_text() for page in pages] == before
    assert f"## blended\n\n{report.NOTHING}" in (tmp_path / "tables.md").read_text()
    assert not list(tmp_path.glob("*.png"))


def test_the_readmes_have_a_place_for_each_table(bench, tmp_path):
    report = bench("report")
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- table one -->\nold\n<!-- end -->\nb\n<!-- table two -->\nkept\n<!-- end -->\n")
    report.write_tables(page, {"one": "new"})
    assert page.read_text() == "a\n<!-- table one -->\nnew\n<!-- end -->\nb\n<!-- table two -->\nkept\n<!-- end -->\n"
    with pytest.raises(AssertionError, match="must have one place for the table three"):
        report.write_tables(page, {"three": ""})


def of_run(middle, low, high, name="ours_faster", **other):
    keys = (name, f"{name}_p20", f"{name}_p80")
    return {"p50_ms": "8", "peak_mb": "2"} | dict(zip(keys, map(str, (middle, low, high)), strict=True)) | other


def test_ratios_are_shown_with_the_bounds_of_all_runs(bench):
    tables = bench("tables")
    assert tables.faster([of_run(2, 3, 1)]) == "2.00x (1.00 - 3.00)"
    runs = [of_run(0.8, 0.5, 1), of_run(2, 1.6, 4), of_run(1, 0.9, 1.1)]
    assert tables.faster(runs) == "1.00x (0.50 - 4.00)"
    assert tables.slower(runs) == "1.000x (0.250 - 2.000)"
    assert tables.of_copy([of_run(2, 1, 3, "of_copy")]) == "2.00x (1.00 - 3.00)"
    assert tables.of_copy([{"of_copy": ""}]) == ""
    table = tables.epochs({("w", "1000 rows, 7 classes, by 100", "d"): {tables.OURS: [of_run(1, 1, 1, p50_ms="50")]}})
    assert table.endswith("| 50 ms | 5 ms |")


def test_memory_of_peers_is_in_times_of_ours(bench):
    tables = bench("tables")
    case = {tables.OURS: [{"peak_mb": "2"}], "eager": [{"peak_mb": "7"}], tables.FLOORS[0]: [{"peak_mb": "1"}]}
    assert tables.memory(case) == "2.0 MB (eager 3.5x)"
    assert tables.memory(case | {tables.OURS: [{"peak_mb": "0.01"}]}) == "0.0 MB (eager 7.0 MB)"


def test_peers_that_compute_all_pairs_stand_apart(bench):
    tables = bench("tables")
    ours, peer = of_run(1, 1, 1, gflop_s="40", percent_of_mm="80"), of_run(3, 3, 3)
    case = {tables.OURS: [ours], "torch sort": [peer], "scipy": [peer]}
    table = tables.medoids({("cityblock", "s", "d"): case})
    assert "| 40, 80% | all pairs: scipy 3.00x (3.00 - 3.00); by sorting: torch sort 3.00x (3.00 - 3.00) |" in table


def test_aims_are_held_against_what_was_measured(bench):
    aims = bench("aims")
    case = {aims.OURS: [of_run(1.5, 1, 2, "of_copy", peak_mb="3.5")], aims.COPY: [{}]}
    case |= {"eager": [of_run(11, 9, 13)], "torch.compile": [of_run(9, 9, 9)], "F.cross_entropy": [of_run(0.5, 0.4, 1)]}
    sizes = ("1024 x 1000", "4096 x 1000", "8 x 10")
    table = aims.came_out(lambda suite: {(aims.BACKWARD, size, "float32"): case for size in sizes})
    rows = [[cell.strip() for cell in line.split("|")[2:-1]] for line in table.splitlines()[2:]]
    assert rows[0] == ["4096 x 1000, float32: 11", "no"]  # 12 times eager
    assert rows[1] == ["1024 x 1000, float32: 11", "yes"]  # 10 times
    assert rows[3] == ["4096 x 1000, float32: 1.5", "yes"]  # a copy's time
    assert rows[4][0].startswith("1024 x 1000, float32: 0.896; ")  # gradients of memory
    assert rows[4][1] == "in 2 of 3 cases"
    assert rows[6] == ["8 x 10, float32: 2", "yes"]  # times F.cross_entropy's time
    assert rows[7] == ["not measured yet", ""]


def test_the_plot_is_drawn_and_its_labels_stand_apart(bench, tmp_path):
    plot = bench("plot")
    case = {peer: [{"p50_ms": "3"}] for peer in plot.LINES}
    cases = {(plot.BACKWARD, f"256 x {classes}, k = 64", "float32"): case for classes in (250, 1000)}
    plot.draw(cases, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert plot.spread_out({"a": 10, "b": 1, "c": 1.1}, 2) == {"b": 1, "c": 2, "a": 10}
