"""The benchmarks' harness and peers: clocks, ratios and counts that are known, what the checks see and leave out."""

import csv
import time
from pathlib import Path

import pytest
import torch

on_a_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="of a CPU's clock and backend")


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
    what = {"op": "blended_kl", "size": "2 x 3", "dtype": "float32", "work": "sleep"}
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
    harness.sweep("suite", cases, op="medoids", dtype="float32", work="w", rounds=9)
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
@pytest.mark.parametrize("times", ["measure", "sweep"])
def test_what_cannot_be_recorded_is_not_timed(bench, monkeypatch, tmp_path, times):
    """The reference is never published as ours, and it is the measured op and dtype that count."""
    harness, called = bench("harness"), []
    what = {"op": "medoids", "dtype": "bfloat16", "work": "w"} | ({"size": "s"} if times == "measure" else {})

    def time_it():
        getattr(harness, times)("suite", {harness.OURS: lambda: called.append(1)}, **what)

    def choose(op, requested, device, dtype, *_, **__):
        return "reference" if (op, dtype) == ("medoids", torch.bfloat16) else "cpu"

    (tmp_path / "suite.csv").write_text("other,columns\n")
    with pytest.raises(AssertionError, match="has other columns"):
        time_it()
    (tmp_path / "suite.csv").unlink()
    monkeypatch.setattr(harness.backends, "choose", choose)
    with pytest.raises(AssertionError, match="would run on 'reference'"):
        time_it()
    assert not called


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
        times = harness.interleaved(cases, rounds=5, seconds=20)
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


def test_a_peer_that_writes_its_gradient_over_its_logits_is_checked_before_it_gets_new_ones(bench):
    loss_peers = bench("loss_peers")
    loss = loss_peers.CrossEntropy(16, 50, torch.float32)
    loss.peers = {name: loss.peers[name] for name in (loss_peers.OURS, "F.cross_entropy")}
    loss.peers["in place"] = loss.peers["F.cross_entropy"]
    scratch = torch.empty(16, 50)
    loss.before["in place"] = lambda: scratch.copy_(loss.logits.detach())

    def in_place(_):
        value, gradient = loss.loss_and_gradient("F.cross_entropy")
        assert torch.equal(scratch, loss.logits)
        return value, scratch.copy_(gradient)

    loss.with_gradient_by_hand["in place"] = in_place
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
