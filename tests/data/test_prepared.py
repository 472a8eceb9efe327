"""Prepared shards: every folder is listed for what it is, and only what was meant is removed."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from toysongs import prepared

from midigenre.commands import prepare as command
from midigenre.corpora.toy import Toy
from midigenre.data.datamodule import PhraseDataModule
from midigenre.data.prepare import refresh_report
from midigenre.data.shards import FORMAT, ShardSet
from midigenre.errors import UserError
from midigenre.files import read_json, share_lock, write_json

HOLD = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""
DIE_WHILE_REMOVING = """
import os, shutil, signal, sys
from pathlib import Path
from midigenre.commands import prepare

def half(folder):
    (Path(folder) / "part-00000.arrow").unlink()
    os.kill(os.getpid(), signal.SIGKILL)

shutil.rmtree = half
root = Path(sys.argv[1])
prepare.remove(prepare.prepared_folders(root)[0])
"""


def said() -> Console:
    return Console(file=StringIO(), width=200)


def text(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def yes(question: str) -> bool:
    return True


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "shards"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def put(root: Path, toy: ShardSet) -> Callable[[str], Path]:
    """Puts a copy of a real preparation into the folder."""

    def copy(name: str) -> Path:
        folder = shutil.copytree(toy.folder, root / name)
        (root / f"{name}.lock").touch()
        return Path(folder)

    return copy


def made(root: Path, name: str, *files: str, lock: bool = True) -> Path:
    """A folder with these files, each with 10 bytes."""
    folder = root / name
    folder.mkdir()
    for file in files:
        (folder / file).write_bytes(b"x" * 10)
    if lock:
        (root / f"{name}.lock").touch()
    return folder


def states(root: Path) -> dict[str, str]:
    return {entry.name: entry.state for entry in command.prepared_folders(root)}


@contextmanager
def held(lock: Path) -> Iterator[None]:
    """Another process holds a lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"held\n"
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# Listing


def test_a_preparation_is_finished(tmp_path: Path) -> None:
    begin = time.time()
    folder = prepared(Toy(n_songs=20), tmp_path).folder
    [entry] = command.prepared_folders(tmp_path / "shards")
    assert (entry.path, entry.corpus, entry.tokenizer) == (str(folder), "toy", "remi")
    assert (entry.songs, entry.state, entry.detail) == (20, "finished", "")
    assert entry.bytes == sum(p.stat().st_size for p in folder.iterdir())
    modified = datetime.fromisoformat(entry.modified).timestamp()
    assert begin - 1 <= modified <= time.time()
    assert 0 <= entry.age_days < 0.01


def test_states(root: Path, put: Callable[[str], Path]) -> None:
    put("toy-remi-00000000")
    (put("toy-remi-00000001") / "report.json").unlink()
    old = put("toy-remi-00000002") / "spec.json"
    write_json(old, read_json(old) | {"format": FORMAT - 1})
    (put("toy-remi-00000003") / "spec.json").write_text('{"format": 2, "cor', encoding="utf-8")
    (put("toy-remi-00000004") / "spec.json").unlink()
    (put("toy-remi-00000005") / "part-00002.arrow").unlink()
    with (put("toy-remi-00000006") / "part-00001.arrow").open("ab") as part:
        part.write(b"\0")
    (put("toy-remi-00000007") / "spec.json").write_text("[]", encoding="utf-8")
    made(root, "my-new-corpus-remi-00000008", "part-00000.arrow")
    made(root, "toy-remi-00000009")  # stopped before its first part
    found = {entry.name[-1]: entry for entry in command.prepared_folders(root)}
    assert {key: entry.state for key, entry in found.items()} == {
        "0": "finished", "1": "unfinished", "2": "other format", "3": "damaged", "4": "damaged",
        "5": "damaged", "6": "damaged", "7": "damaged", "8": "unfinished", "9": "unfinished",
    }  # fmt: skip
    assert found["2"].detail == f"format {FORMAT - 1}, this version reads {FORMAT}"
    assert found["3"].detail.startswith("spec.json is damaged (no JSON: ")
    assert found["5"].detail == "part-00002.arrow is damaged (No such file or directory)"
    assert found["6"].detail.startswith("part-00001.arrow is damaged (it has ")
    assert found["8"].corpus == "my-new-corpus"
    assert found["8"].tokenizer == "remi"
    assert (found["8"].songs, found["8"].bytes) == (None, 10)
    assert found["9"].bytes == 0


def test_in_work_while_another_process_holds_the_lock(
    root: Path, put: Callable[[str], Path]
) -> None:
    folder = put("toy-remi-00000000")
    with held(root / "toy-remi-00000000.lock"):
        assert states(root) == {folder.name: "in work"}
    assert states(root) == {folder.name: "finished"}


def test_in_work_while_this_process_holds_the_lock(root: Path) -> None:
    made(root, "toy-remi-00000000", "part-00000.arrow")
    with FileLock(root / "toy-remi-00000000.lock"):
        assert states(root) == {"toy-remi-00000000": "in work"}


def test_in_use_while_somebody_reads_them(
    root: Path, put: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = put("toy-remi-00000000")
    put("toy-remi-00000001")
    data = PhraseDataModule(folder)  # what a training holds
    another = ShardSet(folder)  # of a sweep: many read at once
    console = said()
    command.show(root, console)
    assert states(root) == {folder.name: "in use", "toy-remi-00000001": "finished"}
    assert "in use: a process reads it" in text(console)
    removed = command.remove_matching(root, "toy-*", console, yes)
    assert [entry.name for entry in removed] == ["toy-remi-00000001"]
    assert f"{folder.name} stays: a process reads it" in text(console)
    with pytest.raises(UserError, match="all of them are in use"):
        command.remove_matching(root, folder.name, console, yes)
    # Opened after the listing, while the person was asked.
    assert (
        command.remove(replace(command.prepared_folders(root)[0], state="finished"))
        == "a process reads it"
    )
    assert data.shards.verify() is None
    del another
    assert states(root)[folder.name] == "in use"
    del data
    gc.collect()
    assert states(root) == {folder.name: "finished"}
    capsys.readouterr()


def test_workers_hold_them_and_a_killed_reader_does_not(
    root: Path, put: Callable[[str], Path]
) -> None:
    folder = put("toy-remi-00000000")
    shards = ShardSet(folder)
    child = os.fork()
    if child == 0:  # a loader's worker; its parent is gone before it
        signal.pause()
    del shards
    gc.collect()
    assert states(root) == {folder.name: "in use"}
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert states(root) == {folder.name: "finished"}


def test_shards_in_work_are_not_opened(root: Path, put: Callable[[str], Path]) -> None:
    folder = put("toy-remi-00000000")
    with (
        FileLock(root / "toy-remi-00000000.lock"),
        pytest.raises(UserError, match="is being prepared or removed by another process"),
    ):
        ShardSet(folder)


def test_a_reader_that_waits_gets_no_lock_of_what_was_removed(tmp_path: Path) -> None:
    path, found = tmp_path / "x.lock", []
    lock = FileLock(path)
    lock.acquire()
    waiter = threading.Thread(target=lambda: found.append(share_lock(path, wait=True)))
    waiter.start()
    time.sleep(0.2)
    path.unlink()  # as a removal does, which has it alone
    lock.release()
    waiter.join()
    assert os.path.samestat(os.fstat(found[0]), path.stat())
    os.close(found[0])


def test_read_only_shards_are_read(
    root: Path, put: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = put("toy-remi-00000000")
    (root / f"{folder.name}.lock").unlink()
    real = os.open

    def read_only(path: Any, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, "Read-only file system", path)
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", read_only)
    monkeypatch.setattr(os, "access", lambda *_: False)
    before = (folder / "report.json").read_bytes()
    shards = ShardSet(folder)
    assert refresh_report(shards, 2, 512)["phrase_bars"] == 2
    assert (folder / "report.json").read_bytes() == before


def test_foreign_folders_and_files_are_left_out(root: Path, put: Callable[[str], Path]) -> None:
    put("backup of June")  # a person renamed it: the spec says what it is
    made(root, "notes", "spec.json", lock=False)
    made(root, "photos-summer-deadbeef", "beach.jpg", lock=False)
    made(root, ".cache", "spec.json", lock=False)
    (root / "readme-remi-00000000").write_text("a file", encoding="utf-8")
    assert states(root) == {"backup of June": "finished"}
    assert command.prepared_folders(root / "nowhere") == []


def test_listing_changes_nothing(root: Path, put: Callable[[str], Path]) -> None:
    put("toy-remi-00000000")
    made(root, "toy-remi-00000001", "part-00000.arrow")
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    command.show(root, said())
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


def test_table_for_people_and_json_for_programs(
    root: Path, put: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for i, days in enumerate((3, 1, 2)):
        folder = put(f"toy-remi-0000000{i}")
        for file in folder.iterdir():
            os.utime(file, (time.time() - days * 86_400,) * 2)
    (root / "toy-remi-00000001" / "report.json").unlink()
    console = said()
    command.show(root, console)
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [o["name"][-1] for o in objects] == ["1", "2", "0"]
    assert [o["age_days"] for o in objects] == [1, 2, 3]
    assert [o["state"] for o in objects] == ["unfinished", "finished", "finished"]
    assert objects[0]["path"] == str(root / "toy-remi-00000001")
    assert [(o["songs"], o["tokenizer"]) for o in objects] == [(48, "remi")] * 3
    printed = text(console)
    assert printed.index("00000001") < printed.index("00000002") < printed.index("00000000")
    assert "3 in all" in printed
    assert "3.0 days ago" in printed
    assert "unfinished: no report.json" in printed


def test_names_may_look_like_markup(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(root, "[red]x-remi-00000000", "part-00000.arrow")
    console = said()
    command.show(root, console)
    assert "[red]x-remi-00000000" in text(console)
    command.remove_matching(root, "unfinished", console, yes)
    assert not (root / "[red]x-remi-00000000").exists()


def test_an_empty_folder_says_so(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = said()
    command.show(root, console)
    assert "holds no shards" in text(console)
    assert capsys.readouterr().out == ""


# Removing


@pytest.mark.parametrize(
    ("pattern", "gone"),
    [
        ("toy-remi-00000000", {"toy-remi-00000000"}),
        ("toy-*", {"toy-remi-00000000", "toy-cp-00000001"}),
        ("*-cp-*", {"toy-cp-00000001"}),
        ("unfinished", {"xmidi-remi-00000002"}),
        ("old", {"xmidi-remi-00000003"}),
        ("damaged", {"xmidi-remi-00000004"}),
    ],
)
def test_what_a_pattern_removes(
    root: Path,
    put: Callable[[str], Path],
    pattern: str,
    gone: set[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    put("toy-remi-00000000")
    put("toy-cp-00000001")
    made(root, "xmidi-remi-00000002", "part-00000.arrow")
    write_json(made(root, "xmidi-remi-00000003") / "spec.json", {"format": 1})
    (made(root, "xmidi-remi-00000004") / "spec.json").write_text("{", encoding="utf-8")
    made(root, "photos-summer-deadbeef", "beach.jpg", lock=False)
    before = set(os.listdir(root))
    asked: list[str] = []
    console = said()
    size = sum(entry.bytes for entry in command.prepared_folders(root) if entry.name in gone)
    removed = command.remove_matching(
        root, pattern, console, lambda q: bool(asked.append(q)) or True
    )
    assert {entry.name for entry in removed} == gone
    assert set(os.listdir(root)) == before - gone - {f"{name}.lock" for name in gone}
    assert len(asked) == 1
    assert all(name in text(console).split("removed")[0] for name in gone)
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {o["name"] for o in objects} == gone
    assert sum(o["bytes"] for o in objects) == size


def test_no_is_no(root: Path, put: Callable[[str], Path]) -> None:
    folder = put("toy-remi-00000000")
    console = said()
    assert command.remove_matching(root, "toy-*", console, lambda _: False) == []
    assert ShardSet(folder).verify() is None
    assert "nothing was removed" in text(console)


@pytest.mark.parametrize("pattern", ["toy-remi-0000000", "../shards/toy-remi-00000000", ""])
def test_no_match_names_what_is_near(root: Path, put: Callable[[str], Path], pattern: str) -> None:
    folder = put("toy-remi-00000000")
    with pytest.raises(UserError, match=r"there is toy-remi-00000000$"):
        command.remove_matching(root, pattern, said(), yes)
    assert folder.is_dir()


def test_a_pattern_that_matches_nothing_removes_nothing(
    root: Path, put: Callable[[str], Path]
) -> None:
    folder = put("toy-remi-00000000")
    with pytest.raises(UserError, match=r"clean=toi-\*: no such shards"):
        command.remove_matching(root, "toi-*", said(), yes)
    with pytest.raises(UserError, match="'other format'"):
        command.remove_matching(root, "old", said(), yes)
    assert folder.is_dir()


def test_an_empty_folder_has_no_match(root: Path) -> None:
    with pytest.raises(UserError, match="holds no shards"):
        command.remove_matching(root, "*", said(), yes)


def test_what_is_in_work_stays(root: Path, put: Callable[[str], Path]) -> None:
    folder = put("toy-remi-00000000")
    put("toy-remi-00000001")
    console = said()
    with held(root / f"{folder.name}.lock"):
        removed = command.remove_matching(root, "toy-*", console, yes)
        assert [entry.name for entry in removed] == ["toy-remi-00000001"]
        with pytest.raises(UserError, match="all of them are in use"):
            command.remove_matching(root, "toy-*", console, yes)
        # It began after the listing, while the person was asked.
        entry = replace(command.prepared_folders(root)[0], state="finished")
        assert command.remove(entry) == "a process prepares or removes it"
    assert f"{folder.name} stays: a process prepares or removes it" in text(console)
    assert ShardSet(folder).verify() is None


def test_what_was_finished_meanwhile_stays(root: Path, put: Callable[[str], Path]) -> None:
    folder = put("toy-remi-00000000")
    report = (folder / "report.json").read_bytes()
    (folder / "report.json").unlink()
    console = said()

    def finish(question: str) -> bool:
        (folder / "report.json").write_bytes(report)
        return True

    assert command.remove_matching(root, "unfinished", console, finish) == []
    assert ShardSet(folder).verify() is None
    assert "it was unfinished and is finished now" in text(console)


def test_a_kill_leaves_what_nobody_takes_for_whole(root: Path, put: Callable[[str], Path]) -> None:
    folder = put("toy-remi-00000000")
    done = subprocess.run(
        [sys.executable, "-c", DIE_WHILE_REMOVING, str(root)], check=False, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not folder.exists()
    [entry] = command.prepared_folders(root)
    assert (entry.state, entry.detail) == ("unfinished", "its removal was stopped")
    assert (Path(entry.path) / "report.json").is_file()  # Else this would test nothing.
    put(folder.name)  # The same shards are prepared again.
    assert states(root) == {f".removing-{folder.name}": "unfinished", folder.name: "finished"}
    command.remove_matching(root, "unfinished", said(), yes)
    assert states(root) == {folder.name: "finished"}
    assert (root / f"{folder.name}.lock").exists()


def test_a_stopped_removal_is_not_in_the_way_of_the_next(
    root: Path, put: Callable[[str], Path]
) -> None:
    put("toy-remi-00000000")
    made(root, ".removing-toy-remi-00000000", "report.json", lock=False)
    command.remove_matching(root, "toy-*", said(), yes)
    assert os.listdir(root) == []


def test_a_link_is_rejected_and_its_target_stays(root: Path, tmp_path: Path, toy: ShardSet) -> None:
    target = shutil.copytree(toy.folder, tmp_path / "elsewhere")
    (root / "toy-remi-00000000").symlink_to(target)
    with pytest.raises(UserError, match="is a link to"):
        command.remove_matching(root, "toy-*", said(), yes)
    assert ShardSet(Path(target)).verify() is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may remove anything")
def test_what_cannot_be_removed_is_one_clear_line(root: Path, put: Callable[[str], Path]) -> None:
    folder = put("toy-remi-00000000")
    root.chmod(0o500)
    try:
        with pytest.raises(UserError, match="cannot remove"):
            command.remove_matching(root, "toy-*", said(), yes)
    finally:
        root.chmod(0o700)
    assert folder.is_dir()


def test_an_error_while_removing_is_a_user_error(
    root: Path, put: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    put("toy-remi-00000000")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(UserError, match=r"cannot remove .*Permission denied.*list=true"):
        command.remove_matching(root, "toy-*", said(), yes)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pattern=st.text(max_size=24))
def test_no_pattern_reaches_beyond_the_listed(root: Path, pattern: str) -> None:
    for folder, lock in ((root / "toy-remi-00000000", True), (root / "mine", False)):
        if not folder.exists():
            made(root, folder.name, "part-00000.arrow", lock=lock)
    (root.parent / "corpora").mkdir(exist_ok=True)
    try:
        removed = command.remove_matching(root, pattern, said(), yes)
    except UserError:
        removed = []
    assert {entry.name for entry in removed} <= {"toy-remi-00000000"}
    assert (root / "mine").is_dir()
    assert (root.parent / "corpora").is_dir()


# Asking


@pytest.mark.parametrize(
    ("answer", "meant"), [("y", True), (" YES ", True), ("", False), ("n", False), ("yep", False)]
)
def test_only_a_typed_yes_is_yes(monkeypatch: pytest.MonkeyPatch, answer: str, meant: bool) -> None:
    monkeypatch.setattr("sys.stdin", terminal := StringIO(answer + "\n"))
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    console = said()
    assert command.answer("Remove [a]?", console) is meant
    assert "Remove [a]? [y/N]" in text(console)


def test_without_a_terminal_it_takes_yes_true(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", StringIO("y\n"))
    with pytest.raises(UserError, match="yes=true"):
        command.answer("Remove?", said())
    assert command.answer("Remove?", said(), yes=True)
