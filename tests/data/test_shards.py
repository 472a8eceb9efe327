"""Shards: plain Arrow, equal to what the tokenizer gives, mapped again in each process."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from torch.utils.data import DataLoader, Dataset
from toysongs import in_memory, midi, tokenizer

from midigenre.data import shards as module
from midigenre.data.phrases import MemorySongs
from midigenre.data.prepare import refresh_report
from midigenre.data.sandbox import read_song
from midigenre.data.shards import FORMAT, ShardSet, open_shards
from midigenre.errors import UserError
from midigenre.files import read_json, write_json
from midigenre.midi.song import NOTE_COLUMNS
from midigenre.spec import LabelSpec, TokenSpec


class Lengths(Dataset[int]):
    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> int:
        return int(self.shards.encoded(index).ids_TF.sum())


def copy(toy: ShardSet, folder: Path) -> Path:
    return Path(shutil.copytree(toy.folder, folder))


def test_any_arrow_tool_reads_them(toy: ShardSet) -> None:
    code = """
import json, sys
import pyarrow as pa
with pa.memory_map(sys.argv[1]) as file:
    table = pa.ipc.open_file(file).read_all()
meta = table.schema.metadata
tokens = json.loads(meta[b"midigenre.tokens"])
print(json.dumps([
    "midigenre" in sys.modules, meta[b"midigenre.format"].decode(),
    [len(f["tokens"]) for f in tokens["fields"]], json.loads(meta[b"midigenre.labels"]),
    table.column_names, table.slice(0, 1).to_pylist()[0]["ids"], table.num_rows,
]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(toy.folder / "part-00000.arrow")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded, version, sizes, labels, columns, ids, rows = json.loads(done.stdout)
    assert (loaded, version, rows) == (False, str(FORMAT), 10)
    assert sizes == list(toy.tokens.sizes)
    assert labels == toy.labels.to_dict()
    assert columns == [
        "song_id", "tpq", "genre", "emotion", "ids", "bar_steps", "bar_tempo", "bar_ticks",
        "bar_onsets", "meters", "tempo_ticks", "tempo_qpm", "file_seconds", *NOTE_COLUMNS,
    ]  # fmt: skip
    assert ids == toy.encoded(0).ids_TF.reshape(-1).tolist()


def test_metadata_of_every_part(toy: ShardSet) -> None:
    for part in toy.parts:
        meta = pa.ipc.open_file(pa.memory_map(str(toy.folder / part["file"]))).schema.metadata
        assert TokenSpec.from_dict(json.loads(meta[b"midigenre.tokens"])) == toy.tokens
        assert LabelSpec.from_dict(json.loads(meta[b"midigenre.labels"])) == toy.labels


def test_rows_are_what_the_tokenizer_gives(toy: ShardSet) -> None:
    tok = tokenizer()
    assert toy.tokens == tok.spec
    indices = toy.label_indices()
    for i, row in enumerate(toy.manifest):
        song = read_song(Path(row["path"]).read_bytes(), tok)[0]
        encoded, stored, read = tok.encode(song), toy.encoded(i), toy.song(i)
        for name in ("ids_TF", "bar_steps", "bar_tempo"):
            np.testing.assert_array_equal(getattr(stored, name), getattr(encoded, name), name)
        for name in NOTE_COLUMNS:
            np.testing.assert_array_equal(getattr(read.notes, name), getattr(song.notes, name))
        for name in ("bar_ticks", "meters", "tempo_ticks", "tempo_qpm"):
            np.testing.assert_array_equal(getattr(read, name), getattr(song, name), name)
        assert read.tpq == song.tpq
        np.testing.assert_allclose(read.file_seconds, song.file_seconds, atol=1e-3)
        np.testing.assert_array_equal(toy.bar_onsets(i), song.onsets_per_bar())
        for label, names in toy.labels.classes.items():
            assert names[indices[label][i]] == row[label]
        assert toy.index_of(row["song_id"]) == i
    assert not toy.encoded(0).ids_TF.flags.writeable


def test_label_columns_of_the_rows(toy: ShardSet) -> None:
    found: dict[str, list[int]] = {"genre": [], "emotion": []}
    for part in toy.parts:
        table = pa.ipc.open_file(pa.memory_map(str(toy.folder / part["file"]))).read_all()
        for label in found:
            found[label] += table[label].to_pylist()
    assert found == {k: v.tolist() for k, v in toy.label_indices().items()}


def test_splits_partition_the_songs(toy: ShardSet) -> None:
    rows = [toy.rows(split).tolist() for split in ("train", "val", "test")]
    assert (
        sorted(i for split in rows for i in split)
        == toy.rows(None).tolist()
        == list(range(len(toy)))
    )
    assert all(rows)


def test_pickle_leaves_the_map_behind(toy: ShardSet) -> None:
    toy.encoded(0)
    data = pickle.dumps(toy)
    assert len(data) < 100_000
    again = pickle.loads(data)
    np.testing.assert_array_equal(again.encoded(47).ids_TF, toy.encoded(47).ids_TF)


def test_workers_open_the_files_themselves(toy: ShardSet) -> None:
    here = [int(toy.encoded(i).ids_TF.sum()) for i in range(len(toy))]
    loader = DataLoader(
        Lengths(toy), batch_size=None, num_workers=1, multiprocessing_context="forkserver"
    )
    assert [int(n) for n in loader] == here


def test_songs_in_memory_are_the_same(toy: ShardSet, toy_songs: dict[str, MemorySongs]) -> None:
    songs = toy_songs["remi"]
    assert len(songs) == 8
    for i in range(8):
        np.testing.assert_array_equal(songs.encoded(i).ids_TF, toy.encoded(i).ids_TF)
        np.testing.assert_array_equal(songs.bar_onsets(i), toy.bar_onsets(i))
        np.testing.assert_array_equal(songs.song(i).notes.onset, toy.song(i).notes.onset)
    assert len(in_memory([midi([1])])) == 1


def test_song_by_id(toy: ShardSet) -> None:
    with pytest.raises(UserError, match=r"'waltz-happy-1000'.*waltz-happy-0000"):
        toy.index_of("waltz-happy-1000")


# What is rejected


def test_folder_without_shards(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r"no spec\.json.*`midigenre prepare corpus"):
            ShardSet(folder)


def test_another_format(toy: ShardSet, tmp_path: Path) -> None:
    folder = copy(toy, tmp_path / "s")
    write_json(folder / "spec.json", read_json(folder / "spec.json") | {"format": FORMAT + 1})
    with pytest.raises(UserError, match=rf"format {FORMAT + 1}.*run `midigenre prepare`"):
        ShardSet(folder)


def test_one_flipped_bit_is_found(toy: ShardSet, tmp_path: Path) -> None:
    toy.verify()
    folder = copy(toy, tmp_path / "s")
    path = folder / "part-00002.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"part-00002\.arrow is damaged.*midigenre prepare"):
        ShardSet(folder).verify()


def reseal(folder: Path, **changes: object) -> None:
    """Changes spec.json as somebody who knows its checksum would."""
    spec = read_json(folder / "spec.json") | changes
    write_json(folder / "spec.json", spec | {"sha256": module._sum_of(spec)})


def other_schema(path: Path) -> bytes:
    table = pa.table({"song_id": ["a"], "ids": [[1, 2]]})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return path.read_bytes()


def bad_offsets(path: Path) -> bytes:
    """The same songs, but one list of tokens ends far behind the values."""
    batch = pa.ipc.open_file(path.read_bytes()).read_all().combine_chunks().to_batches()[0]
    ids = batch.column("ids")
    ends = ids.offsets.to_numpy().copy()
    ends[3] = 10**9
    columns = {name: batch.column(name) for name in batch.schema.names}
    columns["ids"] = pa.Array.from_buffers(
        ids.type, len(ids), [None, pa.py_buffer(ends)], children=[ids.values]
    )
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(list(columns.values()), schema=batch.schema))
    return path.read_bytes()


BAD_PARTS: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "cut": (lambda p: p.read_bytes()[:-8], "not "),
    "empty": (lambda p: b"", "it has 0 bytes"),
    "zeros": (lambda p: bytes(p.stat().st_size), "Arrow"),
    "random": (lambda p: np.random.default_rng(0).bytes(p.stat().st_size), "Arrow"),
    "cut and filled up": (
        lambda p: p.read_bytes()[: p.stat().st_size // 2].ljust(p.stat().st_size, b"x"), "Arrow",
    ),
    "another schema": (other_schema, "part of other shards"),
    "offsets out of range": (bad_offsets, "Offset"),
}  # fmt: skip


@pytest.mark.parametrize("known", [False, True], ids=["", "size known"])
@pytest.mark.parametrize("kind", BAD_PARTS)
def test_a_bad_part_is_one_line(toy: ShardSet, tmp_path: Path, kind: str, known: bool) -> None:
    folder = copy(toy, tmp_path / "s")
    path = folder / "part-00001.arrow"
    change, problem = BAD_PARTS[kind]
    path.write_bytes(change(path))
    if known:  # the size alone does not give it away
        size = path.stat().st_size
        parts = [p | ({"bytes": size} if p["file"] == path.name else {}) for p in toy.parts]
        reseal(folder, parts=parts)
    with pytest.raises(UserError) as caught:
        ShardSet(folder)
    message = str(caught.value)
    assert message.startswith(f"{path} is damaged (")
    assert "\n" not in message
    assert "`midigenre prepare clean=s`" in message
    assert "run `midigenre prepare` again" in message
    if known and kind not in ("cut", "empty"):
        assert problem in message


def test_a_part_of_other_songs_or_gone(toy: ShardSet, tmp_path: Path) -> None:
    folder = copy(toy, tmp_path / "s")
    last = toy.parts[-1]["file"]
    shutil.copy(folder / "part-00000.arrow", folder / last)
    size = (folder / last).stat().st_size
    reseal(folder, parts=[*toy.parts[:-1], toy.parts[-1] | {"bytes": size}])
    with pytest.raises(UserError, match=rf"{last} is damaged \(it has 10 songs, not 8\)"):
        ShardSet(folder)
    (folder / last).unlink()
    with pytest.raises(UserError, match=rf"{last} is damaged \(No such file"):
        ShardSet(folder)


def lines(data: bytes, change: Callable[[list[bytes]], list[bytes]]) -> bytes:
    return b"".join(change(data.splitlines(keepends=True)))


BAD_FILES: list[tuple[str, str, Callable[[bytes], bytes], str]] = [
    ("spec.json", "cut", lambda d: d[: len(d) // 2], "no JSON"),
    ("spec.json", "empty", lambda d: b"", "no JSON"),
    ("spec.json", "binary", lambda d: b"\x00\xff" * 9, "no JSON"),
    ("spec.json", "NaN", lambda d: d.replace(b'"format": 5', b'"format": NaN'), "NaN"),
    ("spec.json", "deep", lambda d: b"[" * 100_000, "nested too deeply"),
    ("spec.json", "list", lambda d: b"[]", "no JSON object"),
    ("spec.json", "null", lambda d: b"null", "no JSON object"),
    ("spec.json", "another class name", lambda d: d.replace(b'"waltz"', b'"walz"'), "changed"),
    ("spec.json", "without its checksum", lambda d: d.replace(b'"sha256"', b'"sha1"'), "changed"),
    ("manifest.csv", "cut", lambda d: d[: len(d) // 2], "damaged"),
    ("manifest.csv", "empty", lambda d: b"", "damaged"),
    ("manifest.csv", "fewer rows", lambda d: lines(d, lambda x: x[:-3]), "45 rows for 48 songs"),
    ("manifest.csv", "other order", lambda d: lines(d, lambda x: [x[0], *x[:0:-1]]), "changed"),
    ("manifest.csv", "another class", lambda d: d.replace(b",waltz,", b",rock,"), "changed"),
    ("manifest.csv", "another split", lambda d: d.replace(b",test,", b",train,", 1), "changed"),
]


@pytest.mark.parametrize(("name", "kind", "change", "problem"), BAD_FILES)
def test_a_changed_file_is_one_line(
    toy: ShardSet,
    tmp_path: Path,
    name: str,
    kind: str,
    change: Callable[[bytes], bytes],
    problem: str,
) -> None:
    path = copy(toy, tmp_path / "s") / name
    data = path.read_bytes()
    path.write_bytes(change(data))
    assert path.read_bytes() != data
    for open_it in (lambda: ShardSet(path.parent), lambda: open_shards(path.parent, tmp_path)):
        with pytest.raises(UserError) as caught:
            open_it()
        message = str(caught.value)
        assert message.startswith(f"{path} ")
        assert problem in message
        assert "\n" not in message
        assert "`midigenre prepare clean=s`" in message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"phrase_bars": NaN}'])
def test_a_bad_report_is_one_line(toy: ShardSet, tmp_path: Path, content: bytes) -> None:
    shards = ShardSet(copy(toy, tmp_path / "s"))
    path = shards.folder / "report.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"report\.json is damaged \(no .*clean=s") as caught:
        refresh_report(shards, 4, 1024)
    assert "\n" not in str(caught.value)


def test_opening_does_not_read_the_songs(toy: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    real = module.sha256
    monkeypatch.setattr(module, "sha256", lambda path: hashed.append(path.name) or real(path))
    ShardSet(toy.folder)
    assert hashed == ["manifest.csv"]
