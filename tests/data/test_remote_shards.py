"""Corpora and shards in a store: the same bytes as here, copied once, then read from the copy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_prepare import content
from toysongs import Stopped, midi, prepared, stop_at
from upath import UPath

from midigenre.corpora.folder import Folder
from midigenre.data import prepare as module
from midigenre.data.shards import ShardSet, open_shards
from midigenre.errors import UserError
from midigenre.files import write_bytes
from stores import bucket as bucket
from stores import memory as memory

N_SONGS = 14


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SONGS_PER_FILE", (4, 4))


def fill(root: UPath | Path) -> None:
    for i in range(N_SONGS):
        write_bytes(root / "ab"[i % 2] / f"{i:02d}.mid", midi([2, 3, 1, 2], seed=i))
    write_bytes(root / "a" / "bad.mid", b"no MIDI")


@pytest.mark.parametrize(("store", "workers"), [("memory", 1), ("bucket", 2)])
def test_from_store_to_store(
    tmp_path: Path, request: pytest.FixtureRequest, store: str, workers: int
) -> None:
    place: UPath = request.getfixturevalue(store)
    fill(place / "corpus")
    fill(tmp_path / "corpus")
    here = prepared(Folder(str(tmp_path / "corpus")), tmp_path / "here")
    shards = prepared(
        Folder(str(place / "corpus")),
        tmp_path / "home",
        folder=str(place / "shards"),
        n_workers=workers,
    )
    assert len(shards) == N_SONGS
    (remote,) = (place / "shards").iterdir()
    assert shards.folder.is_relative_to(tmp_path / "home" / "cache")
    assert shards.folder.name.startswith(remote.name)
    names = {path.name for path in remote.iterdir()}
    assert names == {path.name for path in here.folder.iterdir()}
    for name in names:
        data = (remote / name).read_bytes()
        assert (shards.folder / name).read_bytes() == data
        if name.endswith(".arrow"):
            assert data == (here.folder / name).read_bytes()
    assert shards.manifest.column("path")[0] == str(place / "corpus" / "a" / "00.mid")
    for i in range(N_SONGS):
        assert np.array_equal(shards.encoded(i).ids_TF, here.encoded(i).ids_TF)
    shards.verify()


def test_an_earlier_preparation_is_used(tmp_path: Path, memory: UPath) -> None:
    fill(memory / "corpus")
    corpus = Folder(str(memory / "corpus"))
    prepared(corpus, tmp_path / "one", folder=str(memory / "shards"))
    said: list[str] = []
    # Another machine: no home in common.
    again = prepared(
        corpus, tmp_path / "two", folder=str(memory / "shards"),
        progress=lambda what, *_: said.append(what),
    )  # fmt: skip
    assert "encoding" not in said
    assert any(what.startswith("copying") for what in said)
    assert len(again) == N_SONGS


def test_a_stopped_one_goes_on(
    tmp_path: Path, memory: UPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(memory / "corpus")
    corpus = Folder(str(memory / "corpus"))
    whole = prepared(corpus, tmp_path / "one", folder=str(memory / "whole"))
    with pytest.raises(Stopped):
        prepared(
            corpus,
            tmp_path / "two",
            folder=str(memory / "stopped"),
            progress=stop_at("encoding", 10),
        )
    (folder,) = (memory / "stopped").iterdir()
    assert {p.name for p in folder.iterdir() if p.name.endswith(".arrow")} == {
        "part-00000.arrow", "part-00001.arrow",
    }  # fmt: skip
    with pytest.raises(UserError, match="no prepared shards"):
        open_shards(folder, tmp_path / "three")
    resumed = prepared(corpus, tmp_path / "two", folder=str(memory / "stopped"))
    made = content(resumed.folder)
    assert made.keys() == content(whole.folder).keys()
    for name, data in content(whole.folder).items():
        assert made[name] == data or name == ".copied.json"


def test_shards_elsewhere_are_opened_by_their_url(tmp_path: Path, memory: UPath) -> None:
    fill(memory / "corpus")
    made = prepared(Folder(str(memory / "corpus")), tmp_path / "one", folder=str(memory / "shards"))
    (folder,) = (memory / "shards").iterdir()
    opened = open_shards(folder, tmp_path / "two")
    assert np.array_equal(opened.encoded(3).ids_TF, made.encoded(3).ids_TF)
    part = opened.folder / "part-00001.arrow"
    part.write_bytes(part.read_bytes()[:-9])
    open_shards(folder, tmp_path / "two").verify()  # came again
    with pytest.raises(UserError, match="no prepared shards"):
        open_shards(memory / "nothing", tmp_path / "two")


def test_a_damaged_spec_in_a_store_is_one_line(tmp_path: Path, memory: UPath) -> None:
    fill(memory / "corpus")
    prepared(Folder(str(memory / "corpus")), tmp_path / "one", folder=str(memory / "shards"))
    (folder,) = (memory / "shards").iterdir()
    spec = (folder / "spec.json").read_bytes()
    for data, problem in (
        (b"", "no JSON"),
        (spec[:-9], "no JSON"),
        (b"[]", "no JSON object"),
        (spec.replace(b'"a",', b'"other",'), "changed since"),
    ):
        (folder / "spec.json").write_bytes(data)
        with pytest.raises(UserError) as caught:
            open_shards(folder, tmp_path / "two")
        message = str(caught.value)
        assert message.startswith(f"{folder / 'spec.json'} is damaged (")
        assert problem in message
        assert f"delete {folder}" in message
        assert "\n" not in message
    (folder / "spec.json").write_bytes(spec)
    data = (folder / "manifest.csv").read_bytes()
    (folder / "manifest.csv").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"manifest\.csv is not the file that its folder's spec"):
        open_shards(folder, tmp_path / "two")


def damaged(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    (folder / name).write_bytes(change((folder / name).read_bytes()))


@pytest.mark.parametrize("name", ["part-00002.arrow", "manifest.csv", "duplicates.csv"])
def test_a_flipped_byte_is_named(tmp_path: Path, name: str) -> None:
    fill(tmp_path / "corpus")
    shards = prepared(Folder(str(tmp_path / "corpus")), tmp_path)
    shards.verify()

    def flip(data: bytes) -> bytes:
        at = (
            len(data) // 2
            if name.endswith(".csv")
            else data.rindex(shards.encoded(8).ids_TF.tobytes())
        )
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    damaged(shards.folder, name, flip)
    with pytest.raises(UserError, match=rf"{name} is damaged.*clean={shards.folder.name}"):
        shards.verify()
    if name == "manifest.csv":  # every command reads it, and nobody wants to train on another one
        with pytest.raises(UserError, match=rf"{name} is damaged.*clean={shards.folder.name}"):
            ShardSet(shards.folder)
    else:
        assert len(ShardSet(shards.folder)) == N_SONGS


def test_all_damaged_files_are_named(tmp_path: Path) -> None:
    fill(tmp_path / "corpus")
    shards = prepared(Folder(str(tmp_path / "corpus")), tmp_path)
    damaged(shards.folder, "part-00000.arrow", lambda data: data + b"x")
    (shards.folder / "part-00003.arrow").unlink()
    with pytest.raises(
        UserError, match=r"part-00000.arrow is damaged.*; .*part-00003.arrow is missing"
    ):
        shards.verify()
