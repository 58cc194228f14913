"""python/train.py as a user runs it: a short run, one that is stopped and resumed, and everything that may go wrong."""

import contextlib
import io
import json
import os
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from PIL import Image
from programs import PYTHON, checkpoint, glyphs, pictures, train
from test_training import assert_same

SHORT = "--classes 12 --epochs 4 --batch-size 24"


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    out = tmp_path_factory.mktemp("short") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert train.main(f"{SHORT} --out {out}".split()) == 0
    return out, output.getvalue()


@pytest.fixture
def undrawn(monkeypatch):
    """Without the pictures, which take longer than these runs."""
    for name in ("learning_curves", "medoid_targets"):
        monkeypatch.setattr(pictures, name, lambda *_: None)


def test_a_short_run_shows_epochs_tables_and_a_verdict(short):
    _, output = short
    assert "12 classes, 144 train + 12 val + 36 test images" in output
    assert len(re.findall(r"^(ce|toast)-seed0 +epoch +\d/4  loss ", output, re.MULTILINE)) == 8
    for word in ("top-1 %", "top-5 %", "NLL", "ECE %", "forward", "loss", "backward", "optimiser", "peak memory"):
        assert word in output
    assert re.search(r"TOAST (beat|lost to|and) cross-entropy", output)
    assert "Both saw 576 new rows in 24 steps" in " ".join(output.split())


def test_a_short_run_leaves_results_and_pictures(short):
    out, _ = short
    results = json.loads((out / "results.json").read_text())
    assert results["trainings"].keys() == {"ce-seed0", "toast-seed0"}
    for record in results["trainings"].values():
        assert len(record["history"]) == 4
        assert record["test"].keys() == {"top1", "top5", "nll", "ece"}
        assert record["test"]["top1"] > 0.5
    for name in ("learning_curves.png", "medoids_toast.png"):
        with Image.open(out / name) as image:
            image.load()
            assert min(image.size) > 400
    assert not (out / "medoids_ce.png").exists()


@pytest.mark.more  # ten seconds, most of them to import torch
@pytest.mark.parametrize("form", ["", "--top-k 8"], ids=["dense", "linear"])
def test_two_processes_train_one_network(form, tmp_path):
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node 2"
    arguments = f"{PYTHON / 'train.py'} --classes 30 --epochs 3 --method toast {form} --out {tmp_path / 'run'}"
    run = subprocess.run(
        [sys.executable, *torchrun.split(), *arguments.split()], capture_output=True, text=True, timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert len(re.findall(r"^toast-seed0 +epoch +\d/3  loss ", run.stdout, re.MULTILINE)) == 3  # of the first alone
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


class Killed(BaseException):
    """What a program cannot prepare for."""


@pytest.mark.parametrize("end", ["Ctrl-C", "killed"])
def test_a_run_that_was_stopped_resumes_to_the_same_bits(short, undrawn, tmp_path, monkeypatch, capsys, end):
    """In its second epoch, of which Ctrl-C saves the two steps that are done."""

    def stop(_, training):
        if training.steps_done == 8:
            if end == "killed":
                raise Killed
            signal.raise_signal(signal.SIGINT)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(train.Watch, "on_step", stop)
        with contextlib.suppress(Killed):
            assert train.main(f"{SHORT} --out {out}".split()) == 130
            assert f"--resume {out}" in capsys.readouterr().out
    saved = checkpoint.load_tensors(out / "ce-seed0" / "checkpoint.pt")
    assert (saved["epoch"], saved["step"]) == (1, 0 if end == "killed" else 2)

    assert train.main(["--resume", str(out)]) == 0
    assert re.findall(r"ce-seed0 +epoch +(\d)/4", capsys.readouterr().out)[-3:] == ["2", "3", "4"]
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


def test_resuming_a_finished_run_only_reports(short, undrawn, capsys):
    out, _ = short
    before = (out / "ce-seed0" / "checkpoint.pt").read_bytes()
    assert train.main(["--resume", str(out)]) == 0
    output = capsys.readouterr().out
    assert "epoch  4/4" not in output
    assert "top-1 %" in output
    assert (out / "ce-seed0" / "checkpoint.pt").read_bytes() == before


def test_a_full_disk_is_said_and_nothing_is_lost(undrawn, tmp_path, capsys):
    """Files may not grow beyond 200 kB: options.json fits, a checkpoint does not."""
    out = tmp_path / "run"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        status = train.main(f"{SHORT} --method ce --out {out}".split())
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


def test_the_program_ends_with_the_status_of_main(tmp_path, monkeypatch, capsys):
    program = str(PYTHON / "train.py")
    monkeypatch.setattr(sys, "argv", [program, "--data", "mnist", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(program, run_name="__main__")
    assert stop.value.code == 2
    assert "train.py: error: unknown data set 'mnist'" in capsys.readouterr().err


@pytest.mark.parametrize("program", ["train.py", "study.py"])
def test_packages_that_are_missing_are_named_with_the_command_that_installs_them(program):
    path = str(PYTHON / program)
    code = f"sys.argv = [{path!r}, '--help']; sys.path.insert(0, {str(PYTHON)!r}); runpy.run_path(sys.argv[0])"
    code = f"import runpy, sys; sys.modules.update(rich=None, scipy=None, torch=None); {code}"
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
        f"--batch-size 8 --method toast --out {tmp_path / 'run'}"
    )
    assert train.main(options.split()) == 0
    assert "pictures: 3 classes, 30 train + 3 val + 3 test images" in capsys.readouterr().out
    assert (tmp_path / "run" / "medoids_toast.png").exists()
