"""What studies share: a run is ended, resumed or begun again, whatever a kill has left of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midigenre.corpora.toy import GENRES, toy_song
from midigenre.run import locked

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


@pytest.fixture
def quietly(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import quietly as module  # type: ignore[import-not-found]

    return module


def test_a_run_is_begun_resumed_or_left_alone(quietly: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    begun = [f"hydra.run.dir={run}", "seed=1"]
    assert quietly.training(run, ["seed=1"]) == begun
    run.mkdir()
    (run / ".lock").touch()  # what is left of a run that was killed while songs were prepared
    assert quietly.training(run, ["seed=1"]) == begun
    assert not run.exists()  # else the run would be called run-2
    run.mkdir()
    (run / "config.yaml").touch()
    assert quietly.training(run, ["seed=1"]) == [f"resume={run}"]
    with locked(run), pytest.raises(SystemExit, match="trained by another process"):
        quietly.training(run, ["seed=1"])
    (run / "cost.json").touch()
    assert quietly.training(run, ["seed=1"]) is None


def test_the_first_failure_ends_the_work(quietly: Any) -> None:
    done: list[int] = []

    def fail() -> None:
        raise SystemExit("no such corpus")

    def later() -> None:
        time.sleep(0.01)
        done.append(1)

    work = [lambda: done.append(0), fail, *[later] * 50]
    with pytest.raises(SystemExit, match="no such corpus"):
        quietly.side_by_side("trainings", work, 1)
    assert done[0] == 0
    assert len(done) < 40
    quietly.side_by_side("trainings", [lambda: done.append(99)], 2)
    assert done[-1] == 99


@pytest.mark.slow
def test_a_killed_study_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "rock"
    folder.mkdir()
    for i in range(12):
        song = toy_song(np.random.default_rng([3, i]), next(iter(GENRES)), "happy")
        (folder / f"{i}.mid").write_bytes(song.dumps_midi())
    # A copy, for the study writes beside itself.
    study = tmp_path / "experiments" / "12_twelve_models"
    study.mkdir(parents=True)
    for name in ("quietly.py", "12_twelve_models/study.py", "12_twelve_models/page.html"):
        (tmp_path / "experiments" / name).write_text((EXPERIMENTS / name).read_text())
    command = [
        sys.executable, str(study / "study.py"), "--only", "rock", "--replace", f"rock={folder}",
        "--steps", "120", "--bars", "2",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True)
    run = tmp_path / "runs" / "12_twelve_models" / "rock"
    try:
        until = time.monotonic() + 300
        while not (run / "checkpoints" / "last.ckpt").is_file():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / "cost.json").exists()
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert json.loads((run / "metrics.json").read_text())["steps"] == 120
    assert "resum" in (run / "train.log").read_text()
    assert [path.name for path in run.parent.iterdir() if path.is_dir()] == ["rock"]
    assert (study / "samples" / "rock.mid").is_file()
