"""Preparation: nothing is lost, nothing is done twice, and a stop costs one part at most."""

from __future__ import annotations

import csv
import errno
import gc
import json
import os
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toysongs import (
    Listed,
    Stopped,
    in_memory,
    midi,
    prepared,
    songs_in,
    stop_at,
    tokenizer,
    write,
)

from midigenre.corpora.base import SongRef, Unusable
from midigenre.corpora.folder import Folder
from midigenre.corpora.toy import Toy
from midigenre.data import chunks
from midigenre.data import prepare as module
from midigenre.data.chunks import Workers
from midigenre.data.labels import LabelSettings
from midigenre.data.phrases import PhraseReader, consecutive
from midigenre.data.prepare import Settings, estimate, refresh_report
from midigenre.data.report import print_report
from midigenre.data.sandbox import read_song
from midigenre.data.shards import ShardSet
from midigenre.errors import UserError
from midigenre.files import read_csv, read_json, safe_name
from midigenre.midi.clean import REJECTIONS


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and content of every file."""
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.iterdir())}


def content(folder: Path) -> dict[str, bytes]:
    return {name: data for name, (_, data) in state(folder).items()}


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SONGS_PER_FILE", (4, 4))


# What is kept and what is rejected


def test_folder_holds_what_the_contract_says(toy: ShardSet) -> None:
    names = {p.name for p in toy.folder.iterdir()}
    parts = {f"part-{i:05d}.arrow" for i in range(5)}
    assert names == parts | {
        "spec.json", "manifest.csv", "refused.csv", "duplicates.csv", "report.json", "labels.csv",
    }  # fmt: skip
    assert toy.folder.name.startswith("toy-remi-")
    assert [p["songs"] for p in toy.parts] == [10, 10, 10, 10, 8]
    assert read_csv(toy.folder / "refused.csv") == []


def test_manifest(toy: ShardSet, toy_home: Path) -> None:
    with (toy.folder / "manifest.csv").open() as file:
        header = next(csv.reader(file))
    assert header == [
        "song_id", "path", "source", "group", "duplicate_group", "duplicate_kind", "split", "bars",
        "notes", "tokens", "repairs", "genre", "emotion",
    ]  # fmt: skip
    listed = Toy(n_songs=48).songs(toy_home / "corpora").songs
    tok = tokenizer()
    for row, ref in zip(toy.manifest, listed, strict=True):
        song = read_song(ref.path.read_bytes(), tok)[0]
        assert row["song_id"] == ref.song_id
        assert row["path"] == str(ref.path)
        assert {k: row[k] for k in ref.labels} == dict(ref.labels)
        assert (row["source"], row["group"], row["duplicate_group"]) == ("toy", "", "")
        assert int(row["bars"]) == song.n_bars
        assert int(row["notes"]) == len(song.notes)
        assert int(row["tokens"]) == len(tok.encode(song).ids_TF)


def test_nothing_is_lost(tmp_path: Path) -> None:
    root, good = tmp_path / "root", midi([2, 2, 2], seed=1)
    write(root / "a" / "good.mid", good)
    write(root / "b" / "Good.MIDI", midi([2, 2], seed=2))
    write(root / "loose.mid", good)
    write(root / "a" / "html.mid", b"<html>not found</html>")
    write(root / "a" / "nothing.mid", b"")
    write(root / "b" / "silent.mid", midi([0]))
    write(root / "b" / "cut.mid", b"MThd")
    (root / "a" / "dangling.mid").symlink_to(tmp_path / "gone.mid")
    (root / "a" / "folder.mid").mkdir()
    corpus = Folder(str(root))
    listing = corpus.songs(tmp_path)
    shards = prepared(corpus, tmp_path / "home")

    refused = read_csv(shards.folder / "refused.csv")
    assert {r["song_id"]: r["reason"] for r in refused} == {
        "loose.mid": "unlabelled",
        "a/html.mid": "unreadable",
        "a/nothing.mid": "unreadable",
        "b/silent.mid": "empty",
        "b/cut.mid": "unreadable",
        "a/dangling.mid": "missing",
    }
    assert {r["reason"] for r in refused} <= set(REJECTIONS)
    assert all(r["path"] == str(root / r["song_id"]) for r in refused)
    assert {r["song_id"]: r["genre"] for r in refused}["a/html.mid"] == "a"
    assert list(refused[0]) == ["song_id", "path", "genre", "reason", "detail"]
    kept = {r["song_id"] for r in shards.manifest}
    assert kept == {"a/good.mid", "b/Good.MIDI"}
    assert len(kept) + len(refused) == len(listing.songs) + len(listing.unusable)
    assert read_json(shards.folder / "report.json")["refused"] == {
        "unreadable": 3, "missing": 1, "empty": 1, "unlabelled": 1,
    }  # fmt: skip


def test_unusable_pieces_of_the_source_keep_their_reason(tmp_path: Path) -> None:
    songs = songs_in(tmp_path, 3).songs(tmp_path).songs
    piece = Unusable("x", tmp_path / "x.krn", "not_written", "no meter", {"genre": "a"})
    shards = prepared(Listed(songs, [piece]), tmp_path)
    (row,) = read_csv(shards.folder / "refused.csv")
    assert row == {
        "song_id": "x", "path": str(piece.path), "genre": "a", "reason": "not_written",
        "detail": "no meter",
    }  # fmt: skip


def test_no_file_that_can_be_used(tmp_path: Path) -> None:
    path = write(tmp_path / "x.mid", b"no")
    with pytest.raises(UserError, match=r"none of the 1 files .*x\.mid: unreadable"):
        prepared(Listed([SongRef("x", path, {"genre": "a"})]), tmp_path)
    with pytest.raises(UserError, match="'listed' has no song"):
        prepared(Listed([]), tmp_path)


@pytest.mark.parametrize("n_workers", [1, 2])
def test_only_conflicts_names_one(n_workers: int, tmp_path: Path) -> None:
    same = [write(tmp_path / f"{i}.mid", midi([2])) for i in range(2)]
    refs = [SongRef(str(i), p, {"genre": f"g{i}"}) for i, p in enumerate(same)]
    with pytest.raises(UserError, match="label_conflict"):
        prepared(Listed(refs), tmp_path, n_workers=n_workers)


def test_a_class_of_which_no_song_is_left_is_named(tmp_path: Path) -> None:
    songs = songs_in(tmp_path, 3).songs(tmp_path).songs
    gone = [
        Unusable("x", tmp_path / "x.mid", "missing", "no such file", {"genre": "ghost"}),
        Unusable("y", tmp_path / "y.mid", "dropped_label", "by wish", {"genre": "wished"}),
    ]
    shards = prepared(Listed(songs, gone), tmp_path / "home")
    said = [
        text for text in read_json(shards.folder / "report.json")["warnings"] if "ghost" in text
    ]
    assert said == ["genre 'ghost' has no song that can be used (refused.csv)"]
    assert "wished" not in str(read_json(shards.folder / "report.json")["warnings"])


def test_a_part_without_a_song(tmp_path: Path, small_parts: None) -> None:
    bad = [
        SongRef(f"bad{i}", write(tmp_path / f"b{i}.mid", b"no%d" % i), {"genre": "a"})
        for i in range(8)
    ]
    good = songs_in(tmp_path / "good", 6).songs(tmp_path).songs
    shards = prepared(Listed([*good[:2], *bad, *good[2:]]), tmp_path)
    assert [p["songs"] for p in shards.parts] == [2, 0, 2, 2]
    memory = in_memory([s.path.read_bytes() for s in good])
    for i in range(6):
        np.testing.assert_array_equal(shards.encoded(i).ids_TF, memory.encoded(i).ids_TF)


def test_labels_that_a_song_lacks_and_extra_columns(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{i}.mid", midi([2, 1], seed=i)) for i in range(3)]
    refs = [
        SongRef("0", paths[0], {"genre": "a", "emotion": None}, extra={"title": "One, two"}),
        SongRef("1", paths[1], {"genre": "b"}, source="elsewhere"),
        SongRef("2", paths[2], {"genre": None, "emotion": "sad"}, group="g"),
    ]
    shards = prepared(Listed(refs, labels=("genre", "emotion")), tmp_path)
    assert shards.labels.to_dict() == {"genre": ["a", "b"], "emotion": ["sad"]}
    found = shards.label_indices()
    assert found["genre"].tolist() == [0, 1, -1]
    assert found["emotion"].tolist() == [-1, -1, 0]
    assert [r["title"] for r in shards.manifest] == ["One, two", "", ""]
    assert [r["source"] for r in shards.manifest] == ["listed", "elsewhere", "listed"]
    assert [r["group"] for r in shards.manifest] == ["", "", "g"]


def test_what_is_left_out_is_told_and_moves_nothing(tmp_path: Path) -> None:
    """Neither a file of another kind nor an empty folder costs a preparation."""
    corpus = songs_in(tmp_path, 4)
    first = prepared(corpus, tmp_path)
    listing = corpus.songs(tmp_path)
    corpus.listing = replace(listing, left_out={".xml": 2}, remarks=["folder 'pop' gave no song"])
    second = prepared(corpus, tmp_path)
    assert second.folder == first.folder
    report = read_json(second.folder / "report.json")
    assert report["left_out"] == {".xml": 2}
    assert report["warnings"][0] == "folder 'pop' gave no song"
    assert len(report["warnings"]) > 1
    corpus.listing = listing
    third = read_json(prepared(corpus, tmp_path).folder / "report.json")
    assert third["warnings"] == report["warnings"][1:]
    assert third["left_out"] == {}


def test_classes_of_the_corpus_keep_their_order(tmp_path: Path) -> None:
    songs = songs_in(tmp_path, 4, ("x", "y")).songs(tmp_path).songs
    shards = prepared(Listed(songs, classes={"genre": ("y", "z", "x")}), tmp_path)
    assert shards.labels.classes == {"genre": ("y", "z", "x")}
    warnings = read_json(shards.folder / "report.json")["warnings"]
    assert "genre 'z' has no song at all" in warnings


# Files with equal bytes


def test_equal_files_stay_in_one_split(tmp_path: Path) -> None:
    refs = []
    for i in range(40):
        for copy in range(2):
            path = write(tmp_path / f"{i}-{copy}.mid", midi([2, 1], seed=i))
            refs.append(SongRef(f"{i}-{copy}", path, {"genre": "ab"[i % 2]}))
    shards = prepared(Listed(refs), tmp_path)
    split, duplicates = {}, {}
    for row in shards.manifest:
        split[row["song_id"]] = row["split"]
        duplicates[row["song_id"]] = row["duplicate_group"]
    for i in range(40):
        assert split[f"{i}-0"] == split[f"{i}-1"]
        assert duplicates[f"{i}-0"] == duplicates[f"{i}-1"] == f"{i}-0"
    assert set(split.values()) == {"train", "val", "test"}


def test_groups_and_equal_files_link_up(tmp_path: Path) -> None:
    """A chain: 0 and 1 are of one group, 1 and 2 have the same bytes, 2 and 3 are of one group."""
    refs = []
    for chain in range(12):
        for i, (group, seed) in enumerate([("p", 0), ("p", 1), ("q", 1), ("q", 2)]):
            path = write(tmp_path / f"{chain}-{i}.mid", midi([2, 1], seed=chain * 10 + seed))
            refs.append(SongRef(f"{chain}-{i}", path, {"genre": "a"}, group=f"{group}{chain}"))
    by_chain = defaultdict(set)
    for row in prepared(Listed(refs), tmp_path).manifest:
        by_chain[row["song_id"].split("-")[0]].add(row["split"])
    assert all(len(splits) == 1 for splits in by_chain.values())
    assert set.union(*by_chain.values()) == {"train", "val", "test"}


def test_equal_files_with_two_labels_are_rejected_with_both_names(tmp_path: Path) -> None:
    songs = songs_in(tmp_path, 6).songs(tmp_path).songs
    same = midi([3, 3], seed=99)
    clash = [SongRef(f"clash-{g}", write(tmp_path / g / "x.mid", same), {"genre": g}) for g in "ab"]
    shards = prepared(Listed([clash[0], *songs, clash[1]]), tmp_path)
    assert [r["song_id"] for r in shards.manifest] == [s.song_id for s in songs]
    refused = {r["song_id"]: r for r in read_csv(shards.folder / "refused.csv")}
    assert set(refused) == {"clash-a", "clash-b"}
    for mine, other in ("ab", "ba"):
        row = refused[f"clash-{mine}"]
        assert row["reason"] == "label_conflict"
        assert row["genre"] == mine
        assert f"{tmp_path / other / 'x.mid'} ({other})" in row["detail"]


# The report


@pytest.mark.parametrize("max_tokens", [150, 400, 10_000])
def test_report_against_a_plain_count(toy: ShardSet, max_tokens: int) -> None:
    report = module.phrase_report(toy, 4, max_tokens)
    tok = tokenizer()
    songs, phrases = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    lengths = []
    for row in toy.manifest:
        song = read_song(Path(row["path"]).read_bytes(), tok)[0]
        n = 0
        for first in range(0, song.n_bars, 4):
            phrase = song.bars(first, min(first + 4, song.n_bars))
            if len(phrase.notes):
                n += 1
                lengths.append(len(tok.encode(phrase).ids_TF))
        for key in ((), ("genre", row["genre"]), ("emotion", row["emotion"])):
            songs[*key, row["split"]] += 1
            phrases[*key, row["split"]] += n
    for split, counts in report["splits"].items():
        assert counts == {"songs": songs[split,], "phrases": phrases[split,]}
    assert sum(c["songs"] for c in report["splits"].values()) == len(toy)
    for label, classes in report["classes"].items():
        assert list(classes) == list(toy.labels.classes[label])
        for name, splits in classes.items():
            for split, counts in splits.items():
                key = (label, name, split)
                assert counts == {"songs": songs[key], "phrases": phrases[key]}

    # Real lengths, of which the report may miss the two steps that restate the tempo.
    tokens, ordered = report["phrase_tokens"], sorted(lengths)
    assert tokens["exact"]
    assert tokens["mean"] == pytest.approx(sum(lengths) / len(lengths), abs=2)
    for p, value in tokens["percentiles"].items():
        at = int(p) / 100 * (len(ordered) - 1)
        low, high = ordered[int(at)], ordered[min(int(at) + 1, len(ordered) - 1)]
        assert value == pytest.approx(low + (at - int(at)) * (high - low), abs=3), p
    cut = report["cut_by_max_tokens"]
    least, most = (sum(n > max_tokens + more for n in lengths) for more in (2, 0))
    assert least <= cut["phrases"] <= most
    assert cut["share"] == pytest.approx(cut["phrases"] / len(lengths), abs=1e-4)


def test_report_of_phrases_that_are_no_slices(tmp_path: Path) -> None:
    shards = prepared(songs_in(tmp_path, 6), tmp_path, "midilike", max_tokens=10)
    report = read_json(shards.folder / "report.json")
    reader = PhraseReader(shards, shards.tokens)
    phrases = consecutive(shards, shards.rows(None), 4)
    real = [len(reader(*p)[0]) for p in zip(phrases.song, phrases.first, phrases.end, strict=True)]
    assert report["phrase_tokens"]["exact"] is False
    assert report["phrase_tokens"]["mean"] == pytest.approx(np.mean(real), rel=0.15)
    assert report["splits"]["train"]["phrases"] > 0
    assert report["cut_by_max_tokens"]["share"] > 0.5


def test_report_is_shown(toy: ShardSet) -> None:
    import io

    from rich.console import Console

    out = io.StringIO()
    report = read_json(toy.folder / "report.json") | {
        "refused": {"empty": 3, "missing": 7},
        "left_out": {".xml": 12, ".txt": 1},
        "warnings": ["genre 'z' has no song in test"],
    }
    print_report(report, Console(file=out, width=100))
    assert "genre × emotion" in out.getvalue()
    for text in (
        "waltz",
        "angry",
        "remi",
        "data.max_tokens=1024",
        "7 missing, 3 empty",
        "'z'",
        "no MIDI files by their names: 12 .xml, 1 .txt",
    ):
        assert text in out.getvalue()
    total = f"{report['splits']['train']['songs']:,} ({report['splits']['train']['phrases']:,})"
    assert total in out.getvalue()


def test_label_table_against_a_plain_count(toy: ShardSet) -> None:
    count = Counter((r["genre"], r["emotion"]) for r in toy.manifest)
    genres, emotions = (Counter(r[k] for r in toy.manifest) for k in ("genre", "emotion"))
    (table,) = read_json(toy.folder / "report.json")["label_tables"]
    assert table["labels"] == ["genre", "emotion"]
    assert table["classes"] == [list(names) for names in toy.labels.classes.values()]
    for genre, row in zip(table["classes"][0], table["songs"], strict=True):
        assert row == [count[genre, emotion] for emotion in table["classes"][1]]
    rows = read_csv(toy.folder / "labels.csv")
    assert len(rows) == 16
    for row in rows:
        n = count[row["genre"], row["emotion"]]
        assert int(row["songs"]) == n
        assert float(row["share"]) == pytest.approx(n / 48, abs=1e-4)
        assert float(row["share_of_genre"]) == pytest.approx(n / genres[row["genre"]], abs=1e-4)
        assert float(row["share_of_emotion"]) == pytest.approx(
            n / emotions[row["emotion"]], abs=1e-4
        )


def test_label_tables_of_more_labels_and_of_missing_ones(tmp_path: Path) -> None:
    rows = [("a", "x", "1"), ("a", None, "2"), ("b", "y", "1"), (None, "y", "2")]
    refs = [
        SongRef(
            str(i), write(tmp_path / f"{i}", midi([2], seed=i)), dict(zip("gef", r, strict=True))
        )
        for i, r in enumerate(rows)
    ]
    classes = {"e": ("y", "x", "never")}
    shards = prepared(Listed(refs, labels=("g", "e", "f"), classes=classes), tmp_path)
    report = read_json(shards.folder / "report.json")
    assert report["label_tables"] == [
        {"labels": ["g", "e"], "classes": [["a", "b", "(none)"], ["y", "x", "never", "(none)"]],
         "songs": [[0, 1, 0, 1], [1, 0, 0, 0], [1, 0, 0, 0]]},
        {"labels": ["g", "f"], "classes": [["a", "b", "(none)"], ["1", "2"]],
         "songs": [[1, 1], [1, 0], [0, 1]]},
    ]  # fmt: skip
    assert "e 'never' has no song at all" in report["warnings"]
    assert len(read_csv(shards.folder / "labels.csv")) == 12
    (a_none,) = [
        r for r in read_csv(shards.folder / "labels.csv") if (r["g"], r["e"]) == ("a", "(none)")
    ]
    assert list(a_none.values()) == ["a", "(none)", "1", "0.25", "0.5", "1.0"]
    never = [r for r in read_csv(shards.folder / "labels.csv") if r["e"] == "never"]
    assert {(r["songs"], r["share"], r["share_of_e"]) for r in never} == {("0", "0.0", "")}
    assert list(read_csv(shards.folder / "labels-f.csv")[0])[:2] == ["g", "f"]


def test_a_label_that_no_song_has(tmp_path: Path) -> None:
    refs = [
        SongRef(str(i), write(tmp_path / f"{i}", midi([2], seed=i)), {"g": "a", "e": None})
        for i in range(3)
    ]
    shards = prepared(Listed(refs, labels=("g", "e")), tmp_path)
    report = read_json(shards.folder / "report.json")
    assert report["label_tables"] == []
    assert "no song has e" in report["warnings"]


def test_one_label_has_no_table(tmp_path: Path) -> None:
    shards = prepared(songs_in(tmp_path, 3), tmp_path)
    assert read_json(shards.folder / "report.json")["label_tables"] == []
    assert not (shards.folder / "labels.csv").exists()


def test_warnings_name_empty_splits_once_and_few_classes(tmp_path: Path) -> None:
    refs = [
        SongRef(str(i), write(tmp_path / f"{i}", midi([2], seed=i)), {"genre": f"g{i % 8}"},
                split="train" if i < 8 else "test")
        for i in range(9)
    ]  # fmt: skip
    shards = prepared(Listed(refs), tmp_path)
    assert read_json(shards.folder / "report.json")["warnings"] == [
        "no song is in val",
        "genre 'g1', 'g2', 'g3', 'g4', 'g5' and 2 more have no song in test",
    ]


def test_other_phrase_settings_change_only_the_report(tmp_path: Path) -> None:
    corpus = songs_in(tmp_path, 5)
    first = prepared(corpus, tmp_path)
    before = state(first.folder)
    again = prepared(corpus, tmp_path, length=2, max_tokens=7)
    assert again.folder == first.folder
    after = state(again.folder)
    assert [name for name in after if after[name] != before[name]] == ["report.json"]
    report = json.loads(after["report.json"][1])
    assert (report["phrase_bars"], report["max_tokens"]) == (2, 7)
    assert report["corpus"] == "listed"
    assert refresh_report(again, 2, 7) == report


# The cache


def test_second_call_writes_nothing(tmp_path: Path) -> None:
    corpus = songs_in(tmp_path, 5)
    first = prepared(corpus, tmp_path)
    before = state(first.folder)
    again = prepared(corpus, tmp_path)
    assert again.folder == first.folder
    assert state(again.folder) == before
    assert [p.suffix for p in (tmp_path / "shards").iterdir() if p.is_file()] == [".lock"]


def test_what_gives_another_folder(tmp_path: Path) -> None:
    corpus = songs_in(tmp_path, 5)
    songs = corpus.songs(tmp_path).songs
    folders = [
        prepared(corpus, tmp_path),
        prepared(corpus, tmp_path, split_seed=1),
        prepared(corpus, tmp_path, fractions=(0.6, 0.2, 0.2)),
        prepared(corpus, tmp_path, "cp"),
        prepared(Listed(songs[:-1]), tmp_path),
        prepared(Listed([*songs[:-1], SongRef("other", songs[-1].path, {"genre": "a"})]), tmp_path),
        prepared(
            Listed([*songs[:-1], SongRef(songs[-1].song_id, songs[-1].path, {"genre": "c"})]),
            tmp_path,
        ),
        prepared(
            Listed([SongRef(s.song_id, s.path, s.labels, group="g") for s in songs]), tmp_path
        ),
        prepared(
            Listed(songs, [Unusable("u", tmp_path / "u.mid", "unlabelled", "")]), tmp_path
        ),
        module.prepare(
            corpus, {"name": "listed", "limit": 5}, tokenizer(), tmp_path, Settings()
        ),
    ]  # fmt: skip
    write(songs[0].path, midi([3, 1, 1], seed=77))
    folders.append(prepared(corpus, tmp_path))
    assert len({f.folder for f in folders}) == len(folders)
    stat = songs[0].path.stat()
    os.utime(songs[0].path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert prepared(corpus, tmp_path).folder not in {f.folder for f in folders}


def test_what_gives_the_same_folder(tmp_path: Path) -> None:
    corpus = songs_in(tmp_path, 5)
    one = prepared(corpus, tmp_path, n_workers=1)
    assert prepared(corpus, tmp_path, n_workers=2, max_tokens=5).folder == one.folder


# Stops, workers, other processes, full disks


@pytest.mark.parametrize("stop", [5, 9, 14])
def test_a_stopped_preparation_goes_on(
    tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    corpus = songs_in(tmp_path, 14)
    whole = prepared(corpus, tmp_path / "whole")
    with pytest.raises(Stopped):
        prepared(corpus, tmp_path / "stopped", progress=stop_at("encoding", stop))
    (folder,) = (tmp_path / "stopped" / "shards").glob("listed-*/")
    assert not (folder / "report.json").exists()
    assert not list(folder.glob("*.part"))
    done = sorted(p.name for p in folder.glob("*.arrow"))
    assert len(done) == (stop - 1) // 4

    made = []
    monkeypatch.setattr(
        chunks, "write_part", lambda path, *a, _write=chunks.write_part: (
            made.append(path.name), _write(path, *a)
        )[1],
    )  # fmt: skip
    resumed = prepared(corpus, tmp_path / "stopped")
    assert sorted([*done, *made]) == [p["file"] for p in whole.parts]
    assert content(resumed.folder) == content(whole.folder)


def test_a_part_that_was_damaged_after_a_stop_is_made_again(
    tmp_path: Path, small_parts: None
) -> None:
    corpus = songs_in(tmp_path, 10)
    whole = prepared(corpus, tmp_path / "whole")
    with pytest.raises(Stopped):
        prepared(corpus, tmp_path / "stopped", progress=stop_at("encoding", 9))
    first = next((tmp_path / "stopped").rglob("part-00000.arrow"))
    first.write_bytes(first.read_bytes()[:-50])
    assert content(prepared(corpus, tmp_path / "stopped").folder) == content(whole.folder)


def test_a_stop_before_the_end_is_no_finished_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = songs_in(tmp_path, 5)
    with monkeypatch.context() as patch:
        patch.setattr(module, "phrase_report", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepared(corpus, tmp_path)
    shards = prepared(corpus, tmp_path)
    assert (shards.folder / "report.json").is_file()
    assert not list(shards.folder.glob("*.done.json"))


def test_workers_and_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with two workers each, at once; then the same with one worker, here."""
    corpus = songs_in(tmp_path / "songs", 10)
    code = f"""
import sys
import threading
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from toysongs import prepared, songs_in
from midigenre.data import prepare as module
module.SONGS_PER_FILE = (4, 4)
ready, home = Path(sys.argv[1]), Path({str(tmp_path / "both")!r})
from midigenre.corpora.folder import Folder
from toysongs import Listed
from midigenre.corpora.base import SongRef
listed = [SongRef(f"s{{i:03d}}", Path({str(tmp_path / "songs")!r}) / f"{{i:03d}}.mid",
                  {{"genre": "ab"[i % 2]}}) for i in range(10)]
said = []
shards = prepared(Listed(listed), home, progress=lambda what, *_: said.append(what), n_workers=2)
print("encoding" in said, len(shards))
"""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, "x"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    monkeypatch.setattr(module, "SONGS_PER_FILE", (4, 4))
    here = prepared(corpus, tmp_path / "here")
    out = [process.communicate(timeout=100) for process in running]
    assert sorted(o for o, _ in out) == ["False 10\n", "True 10\n"], out
    (both,) = (tmp_path / "both" / "shards").glob("listed-*/")
    assert content(both) == content(here.folder)


def test_a_full_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_parts: None
) -> None:
    corpus = songs_in(tmp_path, 10)
    whole = prepared(corpus, tmp_path / "whole")
    real = chunks.write_part

    def full(path: Path, *rest: Any) -> str:
        if path.name == "part-00001.arrow":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(chunks, "write_part", full)
        with pytest.raises(UserError, match=r"No space left on device.*MIDIGENRE_HOME") as caught:
            prepared(corpus, tmp_path / "home")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "home").rglob("*.part"))
    assert content(prepared(corpus, tmp_path / "home").folder) == content(whole.folder)


@pytest.mark.parametrize("name", ["home", "home/shards"])
def test_a_home_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    corpus = songs_in(tmp_path, 3)
    write(tmp_path / name, b"a file is in the way")
    with pytest.raises(UserError, match=r"cannot write .*MIDIGENRE_HOME"):
        prepared(corpus, tmp_path / "home")


def test_a_finished_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = songs_in(tmp_path, 3)
    prepared(corpus, tmp_path)

    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(module, "write_json", refuse)
    prepared(corpus, tmp_path)
    with pytest.raises(UserError, match="Permission denied"):
        prepared(corpus, tmp_path, length=2)


def test_a_progress_is_told_of_every_song(tmp_path: Path, small_parts: None) -> None:
    said: list[tuple[str, int, int]] = []
    prepared(songs_in(tmp_path, 9), tmp_path, progress=lambda *a: said.append(a))
    for what in ("hashing", "encoding"):
        counts = [done for now, done, total in said if now == what]
        assert sorted(set(counts)) == list(range(1, 10))
        assert counts == sorted(counts)
        assert {total for now, _, total in said if now == what} == {9}


# Odds and ends


def test_names_that_files_may_have(tmp_path: Path) -> None:
    names = ["a b", "k=v", "[x]", "#1", "naïve ☃", "it's", 'say "x"', "comma, semi;", "line\nbreak"]
    raw = os.fsdecode(b"bad\xff\xfebytes")
    try:
        write(tmp_path / raw, b"")
        names.append(raw)
    except OSError:  # a file system that takes UTF-8 only
        pass
    root = tmp_path / "root"
    for i, name in enumerate(names):
        write(root / name / f"{name}.mid", midi([2, 1], seed=i))
    shards = prepared(Folder(str(root)), tmp_path / "home")
    assert len(shards) == len(names)
    assert read_csv(shards.folder / "refused.csv") == []
    assert {r["genre"] for r in shards.manifest} == set(names)
    again = ShardSet(shards.folder)
    assert set(again.labels.classes["genre"]) == set(names)
    for i, row in enumerate(again.manifest):
        assert row["song_id"] == f"{row['genre']}/{row['genre']}.mid"
        assert Path(row["path"]).is_file()
        assert again.index_of(row["song_id"]) == i
        assert len(again.encoded(i).ids_TF) == int(row["tokens"])


def test_estimate(toy_home: Path, toy: ShardSet) -> None:
    found = estimate(Toy(n_songs=48), tokenizer(), toy_home, Settings(), sample=12)
    assert found["songs"] == 48
    assert found["sampled"] == 12
    assert found["rejected_in_sample"] == 0
    real = sum(p["bytes"] for p in toy.parts) / 1e6
    assert real / 3 < found["megabytes"] < 3 * real
    assert 0.05 < found["seconds"] < 60
    assert found["free_megabytes"] > 0
    settings = Settings(workers=Workers(2))
    two = estimate(Toy(n_songs=48), tokenizer(), toy_home / "none", settings, sample=500)
    assert two["sampled"] == 48


def test_estimate_counts_files_that_are_rejected(tmp_path: Path) -> None:
    refs = [
        SongRef(str(i), write(tmp_path / f"{i}", midi([2]) if i % 2 else b"no"), {"genre": "a"})
        for i in range(6)
    ]
    found = estimate(Listed(refs), tokenizer(), tmp_path, Settings())
    assert (found["sampled"], found["rejected_in_sample"]) == (6, 3)
    assert not (tmp_path / "shards").exists()


def test_estimate_leaves_dropped_classes_out(tmp_path: Path) -> None:
    settings = Settings(labels=LabelSettings({"genre": {"a": None}}))
    found = estimate(songs_in(tmp_path, 7), tokenizer(), tmp_path, settings)
    assert found["songs"] == 3


def test_safe_name() -> None:
    assert safe_name("a/b c=1#[x].mid") == "a_b_c_1_x_.mid"
    assert safe_name("../..") == "_"
    assert "/" not in safe_name("/etc/passwd")


def test_readers_do_not_make_each_other_wait(tmp_path: Path) -> None:
    """A second training of the same shards begins while the first one reads them."""
    said: list[str] = []
    first = prepared(Toy(n_songs=20), tmp_path)
    again = prepared(Toy(n_songs=20), tmp_path, progress=lambda what, *_: said.append(what))
    assert again.folder == first.folder
    assert not any(what.startswith(("waiting", "encoding")) for what in said)


def test_a_folder_is_not_made_again_under_its_readers(tmp_path: Path) -> None:
    first = prepared(Toy(n_songs=20), tmp_path)
    (first.folder / "report.json").unlink()
    waiting, made = threading.Event(), []

    def progress(what: str, done: int, total: int) -> None:
        if what.startswith("waiting for another process that prepares or reads"):
            waiting.set()

    thread = threading.Thread(
        target=lambda: made.append(prepared(Toy(n_songs=20), tmp_path, progress=progress))
    )
    thread.start()
    assert waiting.wait(60)
    assert not made
    first.verify()
    del first
    gc.collect()
    thread.join()
    assert len(made[0]) == 20
