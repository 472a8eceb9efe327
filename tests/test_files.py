"""Files are whole or not there."""

from __future__ import annotations

import csv
import hashlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midigenre import files
from midigenre.files import (
    NotRegularError,
    SlowReadError,
    csv_cell,
    csv_value,
    read_bytes,
    read_csv,
    read_json,
    remove_parts,
    sha256,
    whole,
    write_bytes,
    write_csv,
    write_json,
)


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.txt"
    with pytest.raises(RuntimeError), whole(path) as part:  # noqa: PT012
        part.write_text("half")
        raise RuntimeError
    assert list(path.parent.iterdir()) == []


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_bytes(path, b"old")
    with pytest.raises(KeyboardInterrupt), whole(path) as part:  # noqa: PT012
        part.write_bytes(b"half")
        assert path.read_bytes() == b"old"
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_new_file_replaces_the_old_one_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_bytes(path, b"old")
    with path.open("rb") as reader:
        with whole(path) as part:
            assert part.parent == tmp_path  # a rename within one file system
            assert part.name.startswith(".")
            part.write_bytes(b"new")
            assert path.read_bytes() == b"old"
        assert path.read_bytes() == b"new"
        assert reader.read() == b"old"  # whoever had it open still reads all of it
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_rename_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError):  # noqa: PT011
        write_bytes(tmp_path / "x", b"data")
    assert list(tmp_path.iterdir()) == []


def test_parts_of_killed_processes_are_removed(tmp_path: Path) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    below = tmp_path / "checkpoints"
    below.mkdir()
    # A container gives every training the same number.
    for pid in (process.pid, os.getpid()):
        (below / f".last.ckpt.{pid}.part").touch()
        (tmp_path / f".metrics.json.{pid}.part").touch()
    kept = [below / f".best.ckpt.{os.getppid()}.part", below / "x.part", below / ".x.part"]
    for path in kept:
        path.touch()
    remove_parts(tmp_path)
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(kept)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("ab☃"), inner),
    max_leaves=8,
)  # fmt: skip


@given(JSON)
@settings(max_examples=50, deadline=None)
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, data: object) -> None:
    path = tmp_path_factory.mktemp("json") / "x.json"
    write_json(path, data)
    assert read_json(path) == data
    assert path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_refuses_what_is_not_json(tmp_path: Path, value: float) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": [value]})
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\xff")
    write_json(tmp_path / "x.json", {"path": name})
    assert read_json(tmp_path / "x.json") == {"path": name}
    assert b"caf\xe9\xff" in (tmp_path / "x.json").read_bytes()
    write_csv(tmp_path / "x.csv", [{"path": name}], ["path"])
    assert read_csv(tmp_path / "x.csv") == [{"path": name}]


@given(st.lists(st.tuples(*(st.text(st.characters(exclude_categories=["Cs"])),) * 2)))
@settings(max_examples=50, deadline=None)
def test_csv_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    table = [{"a": a, "b": b} for a, b in rows]
    write_csv(path, table, ["a", "b"])
    assert read_csv(path) == table


def test_csv_columns(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    write_csv(path, [{"b": 2}, {"a": 1, "b": "x"}], ["a", "b"])
    assert read_csv(path) == [{"a": "", "b": "2"}, {"a": "1", "b": "x"}]
    with pytest.raises(ValueError, match="'c'"):
        write_csv(path, [{"c": 1}], ["a", "b"])
    assert len(read_csv(path)) == 2
    write_csv(path, [], ["a"])
    assert read_csv(path) == []


def test_sha256(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    write_bytes(tmp_path / "x", data)
    assert sha256(tmp_path / "x") == hashlib.sha256(data).hexdigest()
    with pytest.raises(OSError):  # noqa: PT011
        sha256(tmp_path / "none")


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """What may stand in the place of a file, by what is said of it."""
    found = {
        "a named pipe": tmp_path / "pipe.mid",
        "a device": tmp_path / "device.mid",
        "a socket": tmp_path / "s.mid",
        "a folder": tmp_path / "folder.mid",
    }
    os.mkfifo(found["a named pipe"])
    found["a device"].symlink_to("/dev/zero")
    found["a folder"].mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(tmp_path)  # the name of a socket has at most 107 bytes
        server.bind("s.mid")
        os.chdir(here)
        yield found


def test_only_regular_files_are_read(odd: dict[str, Path]) -> None:
    for what, path in odd.items():
        with pytest.raises(NotRegularError) as caught:
            read_bytes(path)
        assert caught.value.strerror == f"{what}, not a regular file"


def test_a_pipe_that_takes_the_place_of_a_file(
    odd: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    regular = os.stat(__file__)
    monkeypatch.setattr(os, "stat", lambda path: regular)  # as it was a moment ago
    for what in ("a named pipe", "a device"):
        with pytest.raises(NotRegularError, match=what):
            read_bytes(odd[what])


def test_reading_stops_where_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    write_bytes(path, bytes(10))
    assert [len(read_bytes(path, n)) for n in (1, 9, 10, 11)] == [1, 9, 10, 10]
    assert len(read_bytes(Path("/proc/self/maps"), 100)) == 100  # its size is 0, they say

    def growing(handle: int, n: int) -> bytes:
        write_bytes(path, bytes(10))
        return b"0123456789"

    monkeypatch.setattr(os, "read", growing)
    assert read_bytes(path, 15) == b"012345678901234"
    with pytest.raises(SlowReadError):
        read_bytes(path, max_seconds=0.05)


FORMULAS = ("=cmd|' /C calc'!A0", "+1+2", "-2+3", "@SUM(1)", "\t=1", "\r=1", "'=1", "''-x", "-")
NO_FORMULAS = ("", "a=b", "-1.5", "+3", "-1e-4", "'", "'a'", "it's", " =1")


def test_a_spreadsheet_runs_no_cell(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    rows = [{"=id": text, "n": -0.5} for text in FORMULAS + NO_FORMULAS]
    write_csv(path, rows, ["=id", "n"])
    with path.open(newline="") as file:
        header, *cells = csv.reader(file)
    assert header == ["'=id", "n"]
    assert [c[0] for c in cells] == [f"'{text}" for text in FORMULAS] + list(NO_FORMULAS)
    assert {c[1] for c in cells} == {"-0.5"}
    assert read_csv(path) == [{"=id": row["=id"], "n": "-0.5"} for row in rows]


@given(st.text(st.sampled_from("'=+-@\t\r1a .e"), max_size=5))
def test_every_cell_comes_back(text: str) -> None:
    assert csv_value(str(csv_cell(text))) == text


@pytest.mark.parametrize("text", ["NaN", "-Infinity", '{"a": [1.5, 1e999]}', "[" * 99_999, "", "{"])
def test_what_is_no_json_is_an_error_of_value(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"is not a number|nested too deeply|Expecting"):
        read_json(path)
    path.write_text('[1e-3, 5, -2.5e300, "NaN"]')
    assert read_json(path) == [1e-3, 5, -2.5e300, "NaN"]
