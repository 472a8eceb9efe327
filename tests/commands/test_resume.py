"""Training that was stopped in the middle of an epoch ends as if it had not been."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

SMALL = ("corpus=toy", "corpus.n_songs=48", "model.d_model=32", "model.n_heads=2",
         "model.n_layers=1", "model.d_ff=32", "data.batch_phrases=8", "trainer.max_epochs=3",
         "+callbacks.signal._target_=spies.SignalAt")  # fmt: skip


def only(folder):
    (found,) = folder.iterdir()
    return found


def last(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def assert_same_end(whole, parts):
    one, other = (last(run) for run in (whole, parts))
    assert one["global_step"] == other["global_step"]
    for key, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][key]), key
    for file in ("metrics.json", "evaluation.json"):
        assert (whole / file).read_text() == (parts / file).read_text()
    costs = [json.loads((run / "cost.json").read_text()) for run in (whole, parts)]
    for key in ("train_tokens", "train_phrases"):
        assert costs[0][key] == costs[1][key]


VARIANTS = {
    "plain": (),
    "workers": ("data.num_workers=2",),
    "accumulated": ("trainer.accumulate_grad_batches=3",),
    "one cycle": ("optim=onecycle",),
    "muon": ("optim=muon",),
    "augmented": (
        "augment=strong",
        "augment.target=genre",
        "data.balance=0.5",
        "tokenizer=octuple",
    ),
}


@pytest.mark.parametrize(
    ("at", "variant"),
    [
        # By default what tests/tasks/test_exact_resume.py has not: the command, and augmentation.
        pytest.param(
            at,
            name,
            marks=[] if at == 4 and name == "augmented" else pytest.mark.slow,
        )
        for at in (4, 22)
        for name in VARIANTS
    ],
)
def test_sigterm_in_mid_epoch(variant, at, midigenre, home, monkeypatch):
    settings = VARIANTS[variant]
    whole, parts = home / "runs" / f"whole {variant}", home / "runs" / f"{variant} {at}"
    if not whole.exists():
        assert midigenre("train", *SMALL, *settings, f"name='{whole.name}'")[0] == 0
    monkeypatch.setenv("SIGNAL_AT", f"{signal.SIGTERM.value}:{at}")
    status, _, err = midigenre("train", *SMALL, *settings, f"name='{parts.name}'")
    assert status == 143, err
    assert err.strip().splitlines()[-1].startswith("midigenre: stopped; resume with: ")
    run = only(parts)
    assert not (run / "evaluation.json").exists()
    done = last(run)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"]
    per_step = 3 if variant == "accumulated" else 1
    assert done % per_step == 0  # a whole step, and not yet the epoch
    assert last(run)["global_step"] > 0
    monkeypatch.delenv("SIGNAL_AT")
    status, out, err = midigenre("train", f"resume={run.relative_to(home)}")
    assert status == 0, err
    assert out.strip() == str(run.relative_to(home))
    assert_same_end(only(whole), run)


def test_ctrl_c_ends_the_step_and_can_be_resumed(midigenre, home, monkeypatch):
    whole = whole_run(midigenre, home)
    monkeypatch.setenv("SIGNAL_AT", f"{signal.SIGINT.value}:5")
    status, _, err = midigenre("train", *SMALL, "name=hasty")
    assert status == 130, err
    assert "stopping after this step" in err
    run = only(home / "runs" / "hasty")
    assert last(run)["global_step"] == 6
    monkeypatch.delenv("SIGNAL_AT")
    assert midigenre("train", f"resume={run}")[0] == 0
    assert_same_end(whole, run)


MEASURED = ("memory_mb", "per_second", "fit_seconds")


def logged(run):
    with (run / "csv" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {key: value for key, value in row.items() if value and not key.endswith(MEASURED)}
        for row in rows
    ]


@pytest.mark.parametrize("at", [4, 15])
@pytest.mark.slow
def test_the_csv_log_goes_on_where_the_run_does(at, midigenre, home, monkeypatch):
    settings = ("logger=csv", "trainer.log_every_n_steps=1")
    whole, parts = home / "runs" / "whole csv", home / "runs" / f"csv {at}"
    if not whole.exists():
        assert midigenre("train", *SMALL, *settings, f"name='{whole.name}'")[0] == 0
    monkeypatch.setenv("SIGNAL_AT", f"{signal.SIGTERM.value}:{at}")
    assert midigenre("train", *SMALL, *settings, f"name='{parts.name}'")[0] == 143
    run = only(parts)
    assert 0 < len(logged(run)) < len(logged(only(whole)))
    monkeypatch.delenv("SIGNAL_AT")
    assert midigenre("train", f"resume={run}")[0] == 0
    assert logged(run) == logged(only(whole))


def wandb_id(run):
    return OmegaConf.load(run / "config.yaml").logger.wandb.id


@pytest.mark.slow
def test_a_resumed_run_keeps_its_weights_and_biases_id(midigenre, home, monkeypatch):
    monkeypatch.setenv("SIGNAL_AT", f"{signal.SIGTERM.value}:9")
    assert midigenre("train", *SMALL, "logger=wandb", "name=wandb")[0] == 143
    monkeypatch.delenv("SIGNAL_AT")
    run = only(home / "runs" / "wandb")
    assert midigenre("train", f"resume={run}")[0] == 0
    ids = {path.name.rpartition("-")[2] for path in run.glob("wandb/offline-run-*")}
    assert ids == {wandb_id(run)}
    assert midigenre("train", *SMALL, "logger=wandb", "name=wandb")[0] == 0
    (other,) = set((home / "runs" / "wandb").iterdir()) - {run}
    assert wandb_id(other) not in ids


def killed(home, *settings, **environment):
    command = [sys.executable, "-m", "midigenre", "train", *SMALL, *settings]
    here = str(Path(__file__).parent)
    paths = os.pathsep.join([here, *sys.path])
    environment = os.environ | environment | {"PYTHONPATH": paths}
    environment.pop("MIDIGENRE_HOME", None)
    found = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
    assert found.returncode == -9, found.stderr


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_kill_9_in_mid_epoch(workers, midigenre, home):
    settings = (f"data.num_workers={workers}", "callbacks.last.every_minutes=0")
    assert midigenre("train", *SMALL, *settings, f"name=alive{workers}")[0] == 0
    killed(home, *settings, f"name=killed{workers}", SIGNAL_AT="9:17")
    run = only(home / "runs" / f"killed{workers}")
    assert last(run)["global_step"] == 17
    assert midigenre("train", f"resume={run}")[0] == 0
    assert_same_end(only(home / "runs" / f"alive{workers}"), run)


def whole_run(midigenre, home):
    """A run that nothing has stopped."""
    if not (home / "runs" / "calm").exists():
        assert midigenre("train", *SMALL, "name=calm")[0] == 0
    return only(home / "runs" / "calm")


def test_resumed_after_its_last_step_and_elsewhere_it_leaves_the_same_bytes(midigenre, home):
    whole = whole_run(midigenre, home)
    copy = home / "runs" / "elsewhere" / whole.name
    shutil.copytree(whole, copy)
    for name in ("metrics.json", "evaluation.json", "predictions.csv", "calibration.json"):
        (copy / name).unlink()
    (copy / "checkpoints" / f".last.ckpt.{os.getpid()}.part").touch()
    assert midigenre("train", f"resume={copy}")[0] == 0
    for path in (*whole.glob("*.json"), *whole.glob("*.csv")):
        if path.name != "cost.json":  # seconds
            assert path.read_bytes() == (copy / path.name).read_bytes(), path.name
    assert sorted(p.name for p in (copy / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_kill_9_in_the_middle_of_a_save(midigenre, home):
    other = Path("/dev/shm")  # a file system other than that of the run, where there is one
    killed(
        home, "name=killed-saving", "+callbacks.kill._target_=spies.KillInSave", KILL_IN_SAVE="2",
        **({"TMPDIR": str(other)} if other.is_dir() else {}),
    )  # fmt: skip
    run = only(home / "runs" / "killed-saving")
    assert last(run)["global_step"] == 17  # the one before
    assert {p.suffix for p in (run / "checkpoints").iterdir()} == {".ckpt", ".part"}
    assert midigenre("train", f"resume={run}")[0] == 0
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert_same_end(whole_run(midigenre, home), run)


@pytest.fixture
def small_disk(tmp_path):
    """``size -> folder``: a file system of that size; a second call changes it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size):
        options = f"{'remount,' if os.path.ismount(folder) else ''}size={size}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
        if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("only root may mount a file system")
        return folder

    yield mount
    subprocess.run(["umount", "--lazy", folder], check=False, capture_output=True)


def test_a_full_disk_leaves_the_checkpoints_before(midigenre, home, small_disk):
    whole = whole_run(midigenre, home)
    shards = json.loads((whole / "spec.json").read_text())["shards"]
    of_one = (whole / "checkpoints" / "last.ckpt").stat().st_size
    disk = small_disk(of_one * 5 // 2)  # best and last, and no third beside them
    status, _, err = midigenre("train", *SMALL, "name=full", f"home={disk}", f"shards={shards}")
    assert status == 2
    run = only(disk / "runs" / "full")
    line = err.strip().splitlines()[-1]
    assert line.startswith(f"midigenre: {run / 'checkpoints'}/"), line
    assert "No space left on device; make room there, then resume with: " in line
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert last(run)["global_step"] == 17
    small_disk("10m")
    assert midigenre("train", f"resume={run}")[0] == 0
    assert_same_end(whole, run)


@pytest.mark.slow
def test_killed_before_the_first_checkpoint_starts_over(midigenre, home):
    assert midigenre("train", *SMALL, "name=unharmed")[0] == 0
    killed(home, "name=early", SIGNAL_AT="9:2")
    run = only(home / "runs" / "early")
    assert not (run / "checkpoints").exists()
    assert midigenre("train", f"resume={run}")[0] == 0
    assert_same_end(only(home / "runs" / "unharmed"), run)
