"""One process a run: who makes its folder, who trains in it, what a refused start leaves."""

import datetime
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import hydra.core.utils
import pytest
from toy_runs import SMALL

from midigenre.errors import UserError
from midigenre.run import claimed, locked

QUICK = (*SMALL, "trainer.max_epochs=1", "trainer.max_steps=2")


def test_each_of_many_gets_a_folder_of_its_own(tmp_path):
    with ThreadPoolExecutor(16) as pool, ExitStack() as held:
        wanted = [claimed(tmp_path / "runs" / "name" / "when") for _ in range(64)]
        names = {folder.name for folder in pool.map(held.enter_context, wanted)}
        assert names == {"when", *(f"when-{i}" for i in range(2, 65))}


def test_a_folder_in_which_nothing_began_goes_with_those_made_for_it(tmp_path):
    with claimed(tmp_path / "runs" / "name" / "when") as alone:
        assert alone.is_dir()
    assert not (tmp_path / "runs").exists()
    with ExitStack() as later:
        with claimed(tmp_path / "runs" / "name" / "when") as first:
            (first / "train.log").write_text("rejected\n")
            second = later.enter_context(claimed(first))
        assert [p.name for p in (tmp_path / "runs" / "name").iterdir()] == ["when-2"]
        (second / "part").mkdir()
        (second / "part" / "config.yaml").touch()
    assert second.is_dir()


HOLD = """
import sys, time
from pathlib import Path
from midigenre.run import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_lock_ends_with_its_process(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"locked\n"
        with (
            pytest.raises(UserError, match="is being trained by another process"),
            locked(tmp_path),
        ):
            pass
        holder.kill()
    with locked(tmp_path):
        pass


CHILD = "import sys; from midigenre.commands.sweep import end_with; end_with(int(sys.argv[1])); "
PARENT = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())])
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_ends_with_its_sweep(number):
    child = CHILD + "print('here', flush=True); import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", PARENT, child], stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"here\n"
        parent.send_signal(number)
        began = time.monotonic()
        assert parent.stdout.read() == b""  # the last process that has the pipe
        assert time.monotonic() - began < 5


def runs_of(home):
    return set((home / "runs").rglob("*")) if (home / "runs").exists() else set()


def test_two_of_one_second_have_a_folder_each(midigenre, home, monkeypatch):
    class Still(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 1, tzinfo=tz)

    monkeypatch.setattr(hydra.core.utils, "datetime", Still)
    printed = [midigenre("train", *QUICK, "name=at once", f"seed={i}")[1] for i in (1, 2)]
    folders = [home / out.strip() for out in printed]
    assert [f.name for f in folders] == ["2026-01-01_00-00-00", "2026-01-01_00-00-00-2"]
    assert set((home / "runs" / "at once").iterdir()) == set(folders)
    for i, folder in zip((1, 2), folders, strict=True):
        assert f"seed: {i}\n" in (folder / "config.yaml").read_text()
        assert (folder / "cost.json").is_file()


def test_a_run_that_trains_cannot_be_resumed(midigenre, home, toy_run):
    before = (home / toy_run / "train.log").read_bytes()
    with locked(home / toy_run):
        status, out, err = midigenre("train", f"resume={toy_run}")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"{toy_run} is being trained by another process" in err
    assert (home / toy_run / "train.log").read_bytes() == before


REFUSED = {
    "Hydra": ["tokenizer=rmei"],
    "a sweep without -m": ["seed=1,2"],
    "a type": ["trainer.max_epochs=abc"],
    "no training": ["trainer.max_epochs=0"],
    "the data": ["task=emotion", "corpus=folder", "corpus.root=/nowhere"],
    "the model": ["model.n_heads=7"],
    "the pooling": ["model.pooling=max"],
    "the optimizer": ["optim.lr=-1"],
    "the resumed run": ["resume=."],
    "parts": ["protocol=crossval", "model.pooling=max"],
    "a sweep": ["-m", "seed=1,2", "trainer.devices=2"],
    "a sweep's choice": ["-m", "tokenizer=remi,nothing"],
}


@pytest.mark.parametrize("by", REFUSED)
def test_a_refused_start_leaves_no_folder(by, midigenre, home):
    before = runs_of(home)
    status, out, err = midigenre("train", *SMALL, "name=refused", *REFUSED[by])
    assert (status, out) == (2, ""), err
    assert runs_of(home) == before
