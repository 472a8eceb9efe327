"""A file on which the parser dies or hangs costs that file; the next one is read."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from toysongs import Listed, midi, prepared, songs_in, tokenizer, write

from midigenre.corpora.base import SongRef
from midigenre.data import chunks
from midigenre.data.sandbox import Limits, Sandbox, encoded_song, file_bytes, read_song
from midigenre.errors import RejectedSongError, UserError
from midigenre.files import read_csv, read_json

LIMITS = Limits(max_seconds=1.0)


@pytest.fixture(scope="module")
def deadly() -> Iterator[Sandbox]:
    sandbox = Sandbox("deadly_sandbox", 3.0)
    yield sandbox
    sandbox.close()


def test_it_says_what_this_process_would(deadly: Sandbox) -> None:
    data, tok = midi([3, 2, 4], seed=1), tokenizer()
    here, there = encoded_song(data, tok), deadly.read("encode", data, tok.spec, LIMITS)
    assert list(here) == list(there)
    for name, column in here["columns"].items():
        assert np.array_equal(column, there["columns"][name]), name
    assert np.array_equal(here["sketch"], there["sketch"])
    rest = [k for k in here if k not in ("columns", "sketch")]
    assert {k: here[k] for k in rest} == {k: there[k] for k in rest}
    assert deadly.read("bars", data, tok.spec, LIMITS) == read_song(data, tok)[0].n_bars
    with pytest.raises(RejectedSongError) as caught:
        deadly.read("encode", b"no", tok.spec, LIMITS)
    assert caught.value.reason == "unreadable"
    with pytest.raises(RejectedSongError, match="unreadable"):
        deadly.read("bars", b"no", tok.spec, LIMITS)


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (b"segfault", "crashed", "SIGSEGV"),
        (b"killed", "crashed", "SIGKILL"),
        (b"hang", "timed_out", "1 s"),
        (b"sleep 30", "timed_out", "prepare.max_seconds"),
        (b"memory", "crashed", "memory"),
    ],
)
def test_a_bad_file_costs_itself(deadly: Sandbox, data: bytes, reason: str, detail: str) -> None:
    spec = tokenizer().spec
    assert "pid" in deadly.read("encode", b"pid", spec, LIMITS)
    began = time.monotonic()
    with pytest.raises(RejectedSongError) as caught:
        deadly.read("encode", data, spec, LIMITS)
    assert (caught.value.reason, detail in caught.value.detail) == (reason, True), caught.value
    assert time.monotonic() - began < 60
    assert "pid" in deadly.read("encode", b"pid", spec, LIMITS)


def test_one_death_may_be_bad_luck(deadly: Sandbox, tmp_path: Path) -> None:
    spec = tokenizer().spec
    before = deadly.read("encode", b"pid", spec, LIMITS)["pid"]
    after = deadly.read("encode", b"once " + str(tmp_path / "mark").encode(), spec, LIMITS)["pid"]
    assert after != before


def test_an_idle_child_ends_and_another_one_starts(deadly: Sandbox) -> None:
    spec = tokenizer().spec
    first = deadly.read("encode", b"pid", spec, LIMITS)["pid"]
    assert deadly.read("encode", b"pid", spec, LIMITS)["pid"] == first
    child = psutil.Process(first)
    deadline = time.monotonic() + 30
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert deadly.read("encode", b"pid", spec, LIMITS)["pid"] != first


def test_a_child_that_cannot_start_is_no_fault_of_the_file() -> None:
    with pytest.raises(UserError, match=r"no_such_module.*exit status 1"):
        Sandbox("no_such_module").read("encode", b"", tokenizer().spec, LIMITS)


def test_a_hanging_child_does_not_outlive_its_parent() -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from toysongs import tokenizer
from midigenre.data.sandbox import Sandbox, Limits, file_bytes
sandbox = Sandbox("deadly_sandbox", 3.0)
print(sandbox.read("encode", b"pid", tokenizer().spec, Limits(max_seconds=2.0))["pid"], flush=True)
sandbox.read("encode", b"hang", tokenizer().spec, Limits(max_seconds=2.0))
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    time.sleep(0.5)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_preparation_goes_on_past_bad_files(
    tmp_path: Path, deadly: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "shared_sandbox", lambda: deadly)
    good = songs_in(tmp_path, 4).songs(tmp_path).songs
    bad = [
        SongRef(name, write(tmp_path / name, data), {"genre": "a"})
        for name, data in (("x", b"segfault"), ("y", b"hang"), ("z", bytes(3_000_000)))
    ]
    limits = Limits(max_seconds=1.0, max_file_mb=2.0)
    songs = [good[0], bad[0], good[1], bad[1], bad[2], *good[2:]]
    shards = prepared(Listed(songs), tmp_path / "home", limits=limits)
    assert shards.manifest.column("song_id") == [s.song_id for s in good]
    refused = read_csv(shards.folder / "refused.csv")
    assert {r["song_id"]: r["reason"] for r in refused} == {
        "x": "crashed", "y": "timed_out", "z": "too_large",
    }  # fmt: skip
    assert "3.0 MB, more than prepare.max_file_mb=2" in refused[2]["detail"]
    report = read_json(shards.folder / "report.json")
    assert report["refused"] == {"too_large": 1, "timed_out": 1, "crashed": 1}


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    songs = songs_in(tmp_path, 3).songs(tmp_path).songs

    def progress(what: str, done: int, total: int) -> None:
        if what == "hashing" and done == 3:
            write(songs[1].path, midi([1], seed=99))  # type: ignore[arg-type]

    home = tmp_path / "home"
    first = prepared(Listed(songs), home, progress=progress)
    (refused,) = read_csv(first.folder / "refused.csv")
    assert (refused["song_id"], refused["reason"]) == (songs[1].song_id, "changed")
    again = prepared(Listed(songs), home)
    assert again.folder != first.folder
    assert len(again) == 3


@pytest.mark.parametrize("limit", [{"max_seconds": 0}, {"max_file_mb": -1.0}])
def test_limits_that_let_nothing_through(tmp_path: Path, limit: dict[str, float]) -> None:
    with pytest.raises(UserError, match="above 0"):
        prepared(songs_in(tmp_path, 1), tmp_path, limits=Limits(**limit))


def test_only_files_are_read_and_no_more_than_allowed(tmp_path: Path) -> None:
    limits = Limits(max_file_mb=1e-3)
    os.mkfifo(tmp_path / "pipe.mid")
    (tmp_path / "zero.mid").symlink_to("/dev/zero")
    (tmp_path / "loop.mid").symlink_to("loop.mid")
    write(tmp_path / "large.mid", bytes(1001))
    write(tmp_path / "most.mid", bytes(1000))
    for name, refusal in {
        "pipe.mid": "not_regular: a named pipe",
        "zero.mid": "not_regular: a device",
        "": "not_regular: a folder",
        "loop.mid": "missing: too many levels of symbolic links",
        "none.mid": "missing: no such file",
        "a\0b.mid": "missing: embedded null byte",
        "large.mid": "too_large: 0.0 MB, more than prepare.max_file_mb=0.001",
    }.items():
        with pytest.raises(RejectedSongError, match=refusal):
            file_bytes(tmp_path / name, limits)
    assert file_bytes(tmp_path / "most.mid", limits) == bytes(1000)
    with pytest.raises(RejectedSongError, match="too_large"):  # it grew since it was listed
        file_bytes(tmp_path / "large.mid", limits, listed=10)
    # Where the size is a lie.
    with pytest.raises(RejectedSongError, match="too_large"):
        file_bytes(Path("/proc/self/smaps"), limits)
