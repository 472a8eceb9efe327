"""Kills, full disks and dead workers: what is prepared in the end is the same to the byte."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_prepare import content
from toysongs import prepared, songs_in

from midigenre.data import prepare as module
from midigenre.data.shards import ShardSet

N_SONGS = 40

_CODE = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from toysongs import Listed, prepared
from midigenre.corpora.base import SongRef
from midigenre.data import prepare as module
module.SONGS_PER_FILE = (4, 4)
songs, home, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
exec(sys.argv[4])
listed = [SongRef(f"s{{i:03d}}", songs / f"{{i:03d}}.mid", {{"genre": "ab"[i % 2]}})
          for i in range({N_SONGS})]
shards = prepared(Listed(listed), home, n_workers=workers)
print(shards.folder)
"""


def start(songs: Path, home: Path, workers: int, before: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _CODE, str(songs), str(home), str(workers), before],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """The songs, and their shards as one process makes them in one go."""
    folder = tmp_path_factory.mktemp("whole")
    corpus = songs_in(folder / "songs", N_SONGS, bars=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SONGS_PER_FILE", (4, 4))
        shards = prepared(corpus, folder / "home")
    return folder / "songs", content(shards.folder)


def wait_for(home: Path, pattern: str, n: int, process: subprocess.Popen[str]) -> bool:
    """Whether so many files came to be before the process ended."""
    deadline = time.monotonic() + 120
    while len(list(home.glob(pattern))) < n:
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return True


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_kill_9_again_and_again(
    tmp_path: Path, whole: tuple[Path, dict[str, bytes]], workers: int
) -> None:
    """Killed with all its workers after one part, then after some more, then left alone."""
    kills = 0
    for n in (1, 4, 10):
        process = start(whole[0], tmp_path, workers)
        if wait_for(tmp_path, "shards/*/*.done.json", n, process):
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
        (folder,) = (tmp_path / "shards").glob("*/")
    assert kills >= 2
    assert not (folder / "report.json").exists()
    out, err = start(whole[0], tmp_path, workers).communicate(timeout=200)
    assert out.strip() == str(folder), err
    assert content(folder) == whole[1]


def test_a_worker_that_is_killed_costs_nothing(
    tmp_path: Path, whole: tuple[Path, dict[str, bytes]]
) -> None:
    process = start(whole[0], tmp_path, 2)
    assert wait_for(tmp_path, "shards/*/*.done.json", 1, process)
    workers = [
        child
        for child in psutil.Process(process.pid).children()
        if any("loky" in word for word in child.cmdline())
    ]
    assert workers
    workers[0].kill()
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert content(Path(out.strip())) == whole[1]


@pytest.mark.parametrize("workers", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_the_disk_is_full(
    tmp_path: Path, whole: tuple[Path, dict[str, bytes]], workers: int
) -> None:
    """The kernel refuses to write on in the middle of a file, in a worker process too."""
    limit = max(len(data) for name, data in whole[1].items() if name.endswith(".arrow")) // 2
    code = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    )
    process = start(whole[0], tmp_path, workers, code)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1
    # Not always the last line: Python's resource tracker may report a dead worker's files after it.
    *_, said = [line for line in err.splitlines() if "midigenre.errors.UserError:" in line]
    assert "cannot write" in said
    assert "it resumes where it stopped" in said
    assert not list(tmp_path.rglob("*.arrow"))
    assert not list(tmp_path.rglob("*.part"))
    out, err = start(whole[0], tmp_path, 1).communicate(timeout=200)
    assert content(Path(out.strip())) == whole[1], err
    ShardSet(Path(out.strip())).verify()
