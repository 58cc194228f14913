"""python/train.py as a user runs it: a short run, one that is stopped and resumed, and everything that may go wrong."""

import json
import re
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from PIL import Image
from programs import PYTHON, checkpoint, glyphs, run_train, start_train, train
from test_training import assert_same

SHORT = ("--classes", 30, "--epochs", 5, "--method", "ce", "toast")


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    out = tmp_path_factory.mktemp("short") / "run"
    status, output, errors = run_train(*SHORT, "--out", out)
    assert status == 0, errors
    return out, output


def test_a_short_run_shows_epochs_tables_and_a_verdict(short):
    _, output = short
    assert "30 classes, 360 train + 30 val + 90 test images" in output
    assert len(re.findall(r"^(ce|toast)-seed0 +epoch +\d/5  loss ", output, re.MULTILINE)) == 10
    for word in ("top-1 %", "top-5 %", "NLL", "ECE %", "forward", "loss", "backward", "optimiser", "peak memory"):
        assert word in output
    assert re.search(r"TOAST (beat|lost to|and) cross-entropy", output)
    assert "Both saw 1,800 new rows in 15 steps" in " ".join(output.split())


def test_a_short_run_leaves_results_and_pictures(short):
    out, _ = short
    results = json.loads((out / "results.json").read_text())
    assert results["trainings"].keys() == {"ce-seed0", "toast-seed0"}
    for record in results["trainings"].values():
        assert len(record["history"]) == 5
        assert record["test"].keys() == {"top1", "top5", "nll", "ece"}
        assert record["test"]["top5"] > 0.3
    for name in ("learning_curves.png", "medoids_toast.png"):
        with Image.open(out / name) as image:
            image.load()
            assert min(image.size) > 400
    assert not (out / "medoids_ce.png").exists()


@pytest.mark.more  # a run that resumes to the same bits shows it too
def test_the_same_command_gives_the_same_bits(short, tmp_path):
    status, _, errors = run_train(*SHORT, "--out", tmp_path / "run")
    assert status == 0, errors
    for name in ("ce-seed0", "toast-seed0"):
        assert_same(*(checkpoint.load_tensors(out / name / "checkpoint.pt") for out in (short[0], tmp_path / "run")))


@pytest.mark.parametrize(
    "form", [pytest.param((), marks=pytest.mark.more, id="dense"), pytest.param(("--top-k", 8), id="linear")]
)
def test_two_processes_train_one_network(form, tmp_path):
    arguments = ("--classes", 30, "--epochs", 3, "--method", "toast", *form, "--out", tmp_path / "run")
    status, output, errors = run_train(*arguments, processes=2)
    assert status == 0, errors
    assert len(re.findall(r"^toast-seed0 +epoch +\d/3  loss ", output, re.MULTILINE)) == 3  # of the first alone
    folder = tmp_path / "run" / "toast-seed0"
    first, second = (checkpoint.load_tensors(folder / name) for name in ("checkpoint.pt", "checkpoint-of-rank-1.pt"))
    assert_same(first["model"], second["model"])
    for name in ("values", "filled", "alpha"):
        assert_same(first["criterion"][name], second["criterion"][name])
    assert first["criterion"]["filled"].all()
    assert first["record"]["fresh_rows"] == 3 * 360
    assert_same(first["record"]["medoids"], second["record"]["medoids"])
    labels = glyphs.load(PYTHON.parent / "data").first_classes(30).train.labels
    assert torch.equal(labels[first["record"]["medoids"]["image"]], torch.arange(30))


@pytest.mark.parametrize(
    "end",
    [pytest.param(signal.SIGINT, marks=pytest.mark.more, id="SIGINT"), pytest.param(signal.SIGKILL, id="SIGKILL")],
)
def test_a_killed_run_resumes_to_the_same_bits(short, tmp_path, end):
    out = tmp_path / "run"
    with start_train(*SHORT, "--out", out) as process:
        while not re.match(r"ce-seed0 +epoch +2/5", process.stdout.readline()):
            assert process.poll() is None, process.stderr.read()
        process.send_signal(end)
        output, errors = process.communicate(timeout=60)
    saved = checkpoint.load_tensors(out / "ce-seed0" / "checkpoint.pt")
    assert 1 <= saved["epoch"] < 5
    if end == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130, errors
        assert f"--resume {out}" in output

    status, output, errors = run_train("--resume", out)
    assert status == 0, errors
    assert not re.search(r"ce-seed0 +epoch +1/5", output)
    for name in ("ce-seed0", "toast-seed0"):
        assert_same(*(checkpoint.load_tensors(run / name / "checkpoint.pt") for run in (out, short[0])))


def test_ctrl_c_stops_it_where_a_shell_has_it_ignored(tmp_path, monkeypatch, capsys):
    """As in a background job; here while the data are loaded, before any epoch."""
    monkeypatch.setattr(train, "load", lambda *_: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert train.main(["--out", str(tmp_path / "run")]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "interrupted" in capsys.readouterr().err


def test_resuming_a_finished_run_only_reports(short, capsys):
    out, _ = short
    before = (out / "ce-seed0" / "checkpoint.pt").read_bytes()
    assert train.main(["--resume", str(out)]) == 0
    output = capsys.readouterr().out
    assert "epoch  5/5" not in output
    assert "top-1 %" in output
    assert (out / "ce-seed0" / "checkpoint.pt").read_bytes() == before


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path, capsys):
    """Files may not grow beyond 200 kB: options.json fits, a checkpoint does not."""
    out = tmp_path / "run"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        status = train.main(f"--classes 30 --epochs 2 --method ce --out {out}".split())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 1
    errors = capsys.readouterr().err
    assert re.search(r"error: cannot write .*checkpoint\.pt.* MiB free.*go on with: .*--resume", errors), errors
    assert [path.name for path in (out / "ce-seed0").iterdir()] == []
    assert train.main(["--resume", str(out)]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--method sgd", "invalid choice: 'sgd'"),
        ("--method ce ce", "--method names the same one twice"),
        ("--epochs 0", "--epochs: expected a whole number in [1, inf), got '0'"),
        ("--epochs 1.5", "--epochs: expected a whole number in [1, inf), got '1.5'"),
        ("--alpha 1.2", "--alpha: expected a number in [0, 1], got '1.2'"),
        ("--temperature 0", "--temperature: expected a number in (0, inf), got '0'"),
        ("--temperature nan", "--temperature: expected a number in (0, inf), got 'nan'"),
        ("--fraction -0.5", "--fraction: expected a number in (0, 1], got '-0.5'"),
        ("--seeds -1", "--seeds: expected a whole number in [0, 2147483648], got '-1'"),
        ("--image-size 30", "--image-size must be a multiple of 4, got 30"),
        ("--data-dir nowhere", "no folder nowhere (--data-dir)"),
        ("--data mnist", "unknown data set 'mnist': expected glyphs, all-glyphs, fashion-mnist, digits or folder:PATH"),
        ("--data folder:nowhere", "nowhere: expected one with a folder of images for each class"),
        ("--classes 100000", "--classes must be in [2, 3250] for glyphs, got 100000"),
        ("--classes 30 --top-k 31", "--top-k must be at most the 30 classes, got 31"),
        ("--top-k 0", "--top-k: expected a whole number in [1, inf), got '0'"),
        ("--top-k 5 --backbone vit", "--top-k needs --backbone cnn, whose last layer is known, got vit"),
        ("--device warp", "--device warp: "),
        ("--resume nowhere", "nothing to resume in nowhere: it has no options.json"),
        ("--resume nowhere --epochs 3", "--resume takes every option from the run: leave out --epochs"),
        ("--backbone lenet", "invalid choice: 'lenet'"),
    ],
)
def test_bad_arguments_end_with_status_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        status = train.main(arguments.split())
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "nothing must be written"


def test_bad_arguments_in_a_process_of_its_own():
    status, output, errors = run_train("--method", "sgd")
    assert (status, output) == (2, "")
    assert "train.py: error: argument --method: invalid choice: 'sgd'" in errors


@pytest.mark.parametrize("program", ["train.py", "study.py"])
def test_packages_that_are_missing_are_named_with_the_command_that_installs_them(program):
    path = str(PYTHON / program)
    code = f"sys.argv = [{path!r}, '--help']; sys.path.insert(0, {str(PYTHON)!r}); runpy.run_path(sys.argv[0])"
    code = f"import runpy, sys; sys.modules.update(rich=None, scipy=None); {code}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 1
    command = re.escape(f"pip install '{PYTHON.parent}[train]'")
    assert re.match(f"{program}: error: cannot import rich, scipy, of .*: {command}", run.stderr)


def test_an_unreadable_image_is_named(tmp_path, capsys):
    for name in ("cats", "dogs"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / "pictures" / name / f"{number}.png")
    (tmp_path / "pictures" / "dogs" / "3.png").write_text("no picture")
    assert train.main(["--data", f"folder:{tmp_path / 'pictures'}", "--out", str(tmp_path / "run")]) == 2
    assert "dogs/3.png is not an image that can be read" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_is_not_overwritten(short, capsys):
    out, _ = short
    with pytest.raises(SystemExit):
        train.main(["--out", str(out)])
    assert f"already holds a run: --resume {out} continues it" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named(short, tmp_path, capsys):
    shutil.copytree(short[0], tmp_path / "run")
    (tmp_path / "run" / "ce-seed0" / "checkpoint.pt").write_bytes(b"cut off")
    assert train.main(["--resume", str(tmp_path / "run")]) == 1
    assert "ce-seed0/checkpoint.pt is no checkpoint of this program, or is damaged" in capsys.readouterr().err


def test_folder_backbone_cutmix_and_bf16_together(tmp_path, capsys):
    pytest.importorskip("transformers")
    pictures = tmp_path / "pictures"
    generator = torch.Generator().manual_seed(0)
    for label in range(3):
        (pictures / f"class{label}").mkdir(parents=True)
        for number in range(12):
            noise = torch.randint(0, 80, (40, 50, 3), generator=generator)
            noise[..., label] += 150
            Image.fromarray(noise.byte().numpy()).save(pictures / f"class{label}" / f"{number}.jpg")
    options = (
        f"--data folder:{pictures} --image-size 32 --backbone resnet --augment cutmix --amp bf16 --epochs 2 "
        f"--batch-size 8 --method toast stage2 --out {tmp_path / 'run'}"
    )
    assert train.main(options.split()) == 0
    assert "pictures: 3 classes, 30 train + 3 val + 3 test images" in capsys.readouterr().out
    assert (tmp_path / "run" / "medoids_toast.png").exists()
