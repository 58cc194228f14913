"""The benchmarks' tables and plot, from results that are known; the pages are made of the results that are here."""

import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


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


def test_results_elsewhere_leave_the_pages_alone(bench, tmp_path):
    report = bench("report")
    pages = list(report.all_tables())
    before = [page.read_text() for page in pages]
    report.main()
    assert [page.read_text() for page in pages] == before
    assert f"## blended\n\n{report.NOTHING}" in (tmp_path / "tables.md").read_text()
    assert not list(tmp_path.glob("*.png"))


def test_a_page_has_a_place_for_each_table(bench, tmp_path):
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


def test_the_headline_has_its_rows_in_their_order_and_none_that_was_not_measured(bench):
    tables = bench("tables")
    case = {
        tables.OURS: [of_run(1, 1, 1)],
        "eager": [of_run(9, 8, 10, peak_mb="31")],
        "torch.compile": [of_run(5, 4, 6)],
        tables.TUNED: [of_run(3, 2, 4)],
    }
    cases = {
        (
            work,
            *tables.HEADLINE[i],
        ): case
        for work in ("forward", tables.BACKWARD)
        for i in (3, 0)
    }
    assert tables.headline(cases).splitlines()[2:] == [
        "| 1024 x 1000 | float32 | 8 ms | 9.0x | 5.0x | 3.0x | 2 (31) |",
        "| 256 x 21841 | bfloat16 | 8 ms | 9.0x | 5.0x | 3.0x | 2 (31) |",
    ]


def test_the_proof_leaves_small_sizes_and_single_passes_out(bench):
    tables = bench("tables")

    def cases(peer, *ratios):
        sizes = ("8 x 2000", "1024 x 1000, k = 64", "600 x 2000")
        found = {(tables.BACKWARD, size, "d"): {peer: [of_run(r, r, r)]} for size, r in zip(sizes, ratios, strict=True)}
        return found | {("forward", "600 x 2000", "d"): {peer: [of_run(99, 99, 99)]}}

    dense = cases("eager", 1, 8, 20)
    for peer, ratios in (("torch.compile", (1, 3.14, 7)), (tables.TUNED, (1, 3, 2))):
        for key, case in cases(peer, *ratios).items():
            dense[key] |= case
    said = tables.proof(dense, cases("F.cross_entropy", 9, 2.5, 2))
    assert "**8 to 20 times" in said
    assert "3.1 to 7 times as fast as torch.compile and 2 to 3 times as fast" in said
    assert "2 to 2.5 times as fast as `F" in said
    assert "from 1024 x 1000 logits on" in said


def test_the_plot_is_drawn_and_its_labels_stand_apart(bench, tmp_path):
    plot = bench("plot")
    case = {peer: [{"p50_ms": "3"}] for peer in plot.LINES}
    cases = {(plot.BACKWARD, f"256 x {classes}, k = 64", "float32"): case for classes in (250, 1000, 4000)}
    plot.draw(cases, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert plot.spread_out({"a": 10, "b": 1, "c": 1.1}, 2) == {"b": 1, "c": 2, "a": 10}
