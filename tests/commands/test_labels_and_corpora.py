"""Corpora as people have them, from the command line: groups, given splits, labels that change."""

import csv
import json
import re
import shlex
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from midigenre.cli import overrides_of
from midigenre.commands.hydra_job import plain_names
from midigenre.corpora.toy import EMOTIONS, GENRES, toy_song
from midigenre.corpora.xmidi import XMIDI_EMOTIONS, XMIDI_GENRES

SMALL = ("model.d_model=32", "model.n_heads=2", "model.n_layers=1", "model.d_ff=32",
         "data.batch_phrases=16", "trainer.max_epochs=1")  # fmt: skip


def song(path, genre, emotion, number):
    """A song of the toy corpus as a file; its genre and emotion by number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([7, number])
    genre, emotion = list(GENRES)[genre % 4], list(EMOTIONS)[emotion % 4]
    path.write_bytes(toy_song(rng, genre, emotion).dumps_midi())
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A small XMIDI: 72 songs of five genres in the dataset's own names, no rock, deep folders."""
    root = tmp_path_factory.mktemp("XMIDI archive")
    genres = [g for g in XMIDI_GENRES if g != "rock"]
    for i in range(72):
        genre = {0: "Classic", 4: "Folk"}.get(i % 24, genres[i % 5])
        emotion = XMIDI_EMOTIONS[i % 3]
        name = f"XMIDI_{emotion}_{genre}_{i:08X}.{'mid' if i % 2 else 'midi'}"
        song(root / f"part{i % 2}" / name, i % 5, i % 3, i)
    return root


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def prepared(midigenre, home, *arguments):
    """Folder, manifest, refused songs, report and what was said."""
    status, out, err = midigenre("prepare", *arguments, "n_workers=1")
    assert status == 0, err
    folder = home / out.strip()
    report = json.loads((folder / "report.json").read_text())
    return folder, rows(folder / "manifest.csv"), rows(folder / "refused.csv"), report, err


# XMIDI


def test_the_own_genres_of_xmidi(midigenre, home, archive):
    folder, manifest, refused, report, err = prepared(
        midigenre, home, "corpus=xmidi", f"corpus.root={archive}"
    )
    counts = Counter(r["genre"] for r in manifest)
    own = Counter(r["song_id"].split("_")[2].lower() for r in manifest)
    assert counts["classical"] == own["classical"] + own["classic"]
    assert counts["traditional"] == own["traditional"] + own["folk"]
    assert own["classic"] == own["folk"] == 3
    assert set(report["classes"]["genre"]) == set(XMIDI_GENRES)
    assert len(manifest) == 72
    assert refused == []
    assert "genre 'rock' has no song at all" in report["warnings"]
    assert "genre 'rock' has no song at all" in err
    assert "genre × emotion" in err
    assert (folder / "labels.png").read_bytes().startswith(b"\x89PNG")
    table = rows(folder / "labels.csv")
    assert len(table) == 6 * 11
    assert sum(int(r["songs"]) for r in table) == 72
    assert sum(float(r["share"]) for r in table) == pytest.approx(1, abs=0.01)


def test_the_six_genres_of_the_plan(midigenre, home, archive):
    _, manifest, refused, report, _ = prepared(
        midigenre, home, "corpus=xmidi_plan", f"corpus.root={archive}"
    )
    assert list(report["classes"]["genre"]) == ["classical", "jazz", "funk", "pop", "rock", "song"]
    counts = Counter(r["genre"] for r in manifest)
    own = Counter(r["song_id"].split("_")[2].lower() for r in manifest)
    assert counts["song"] == own["country"] + own["traditional"] + own["folk"]
    assert counts["classical"] == own["classical"] + own["classic"]
    assert refused == []
    assert "genre 'funk', 'rock' have no song at all" in report["warnings"]
    _, kept, refused, _, _ = prepared(
        midigenre, home, "corpus=xmidi_plan", f"corpus.root={archive}", "corpus.other=drop",
        "corpus.genres=[classical,jazz,funk,pop,rock]",
    )  # fmt: skip
    assert len(refused) == counts["song"]
    assert {r["reason"] for r in refused} == {"unlabelled"}
    assert {r["genre"] for r in kept} == {"classical", "jazz", "pop"}


@pytest.mark.slow
def test_from_the_archive_to_a_model(midigenre, home, archive):
    """The steps of docs/xmidi.md, in small."""
    xmidi = ("corpus=xmidi_plan", f"corpus.root={archive}", "corpus.limit=60", "n_workers=1")
    status, _, err = midigenre("prepare", *xmidi, "tokenizer=octuple", "dry_run=true")
    assert status == 0
    assert "60 songs" in err
    status, out, err = midigenre(
        "train", *xmidi, *SMALL, "tokenizer=octuple", "task=genre_emotion", "name=xmidi",
        "labels.map.genre.funk=null", "labels.min_songs=3",
    )  # fmt: skip
    assert status == 0, err
    run = out.strip()
    spec = json.loads((home / run / "spec.json").read_text())
    # Dropped by name, and too small: neither is a class of the model.
    assert spec["labels"]["genre"] == ["classical", "jazz", "pop", "song"]
    assert spec["labels"]["emotion"] == list(XMIDI_EMOTIONS[:3])
    config = OmegaConf.load(home / run / "config.yaml")
    assert config.labels == {"map": {"genre": {"funk": None}}, "min_songs": 3}
    before = {p.name for p in (home / "shards").iterdir()}
    status, _, err = midigenre("evaluate", f"run={run}")
    assert status == 0, err
    assert {p.name for p in (home / "shards").iterdir()} == before  # the run's own songs, found
    # The same files under the dataset's own names need to be told what they are here.
    own = ("evaluate", f"run={run}", "corpus=xmidi", f"corpus.root={archive}", "subset=all",
           "labels.min_songs=1")  # fmt: skip
    status, _, err = midigenre(*own)
    assert status == 2
    assert "labels.map.genre.country=null labels.map.genre.traditional=null" in err
    status, out, err = midigenre(
        *own, "labels.map.genre.country=song", "labels.map.genre.traditional=null"
    )
    assert status == 0, err
    evaluation = json.loads((home / out.strip()).read_text())
    assert evaluation["genre"]["song"]["n"] == sum(
        "_traditional_" not in p.name and "_Folk_" not in p.name for p in archive.rglob("*.mid*")
    )
    status, out, err = midigenre("predict", f"run={run}", "--", str(archive / "part0"))
    assert status == 0, err
    assert {json.loads(line)["genre"] for line in out.splitlines()} <= set(spec["labels"]["genre"])


@pytest.mark.slow
def test_every_command_of_the_page(midigenre, home, archive):
    """docs/xmidi.md, line by line, on a small archive and with a small model."""
    page = (Path(__file__).parents[2] / "docs" / "xmidi.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", page, re.S)
    lines = [line for line in "".join(blocks).splitlines() if line.startswith("midigenre ")]
    assert len(lines) >= 12
    run = None
    for line in lines:
        words = shlex.split(line.replace("/data/XMIDI/some/folder", "FOLDER"))[1:]
        small = [*SMALL, "n_workers=1"] if words[0] == "train" else []
        small += ["n_workers=1"] if words[0] in ("prepare", "evaluate") else []
        words = [
            word.replace("/data/XMIDI", str(archive)).replace("FOLDER", str(archive / "part0"))
            for word in words
        ]
        words = [word.replace("=RUN", f"={run}") if run else word for word in words]
        # This machine has no GPU.
        words = ["trainer=cpu" if word == "trainer=gpu" else word for word in words]
        words = ["precision=fp32" if word == "precision=bf16" else word for word in words]
        at = words.index("--") if "--" in words else len(words)
        status, out, err = midigenre(*words[:at], *small, *words[at:])
        assert status == 0, (line, err)
        if words[0] == "train":
            run = out.strip()


# Manifest

ARTISTS = 12


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """A CSV of 48 songs by 12 artists, four without an artist, and one file that is gone."""
    root = tmp_path_factory.mktemp("my songs; 2024")
    lines = [["path", "genre", "Emotion", "group", "split", "year", "bars"]]
    for i in range(48):
        artist = i % ARTISTS
        path = song(root / "files" / f"{i}, live.mid", artist, i % 2, i)
        split = ("train", "val", "test")[(artist // 4) % 3]
        lines.append([f"files/{path.name}", f"g{artist % 4}", "ab"[i % 2],
                      f"Artist {artist}" if i < 44 else "", split, str(1960 + i), "x"])  # fmt: skip
    lines.append(["files/gone.mid", "g0", "a", "", "train", "", ""])
    with (root / "my songs.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=";").writerows(lines)
    return root / "my songs.csv"


def test_a_manifest_with_given_splits(midigenre, home, collection):
    _, manifest, refused, report, err = prepared(
        midigenre, home, "corpus=manifest", f"corpus.path={collection}"
    )
    given = {r["path"]: r["split"] for r in csv.DictReader(
        collection.open(encoding="utf-8-sig"), delimiter=";")}  # fmt: skip
    assert {r["song_id"]: r["split"] for r in manifest} == {
        k: v for k, v in given.items() if "gone" not in k
    }
    assert [(r["song_id"], r["reason"]) for r in refused] == [("files/gone.mid", "missing")]
    assert list(report["classes"]["emotion"]) == ["a", "b"]
    assert [r["year"] for r in manifest] == [str(1960 + i) for i in range(48)]
    assert all(r["bars"].isdigit() for r in manifest)  # ours, not the table's
    assert any("4 of 48 songs have no group" in w for w in report["warnings"])
    assert "files/44, live.mid" in err


def test_a_manifest_dealt_by_artist(midigenre, home, collection, tmp_path):
    with collection.open(encoding="utf-8-sig") as file:
        table = list(csv.DictReader(file, delimiter=";"))
    path = tmp_path / "no splits.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "genre", "group"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(table)
    _, manifest, _, report, _ = prepared(
        midigenre, home, "corpus=manifest", f"corpus.path={path}",
        f"corpus.root={collection.parent}", "corpus.labels=[genre]",
    )  # fmt: skip
    assert len(manifest) == 48
    splits = defaultdict(set)
    for row in manifest:
        splits[row["group"] or row["song_id"]].add(row["split"])
    assert all(len(held) == 1 for held in splits.values())
    assert set.union(*splits.values()) == {"train", "val", "test"}
    assert len(splits) == ARTISTS + 4
    assert list(report["classes"]) == ["genre"]


def test_our_own_manifest_is_one(midigenre, home, collection):
    folder, first, _, _, _ = prepared(
        midigenre, home, "corpus=manifest", f"corpus.path={collection}"
    )
    again, second, refused, _, _ = prepared(
        midigenre, home, "corpus=manifest", f"corpus.path={folder / 'manifest.csv'}",
        "corpus.root=.",
    )  # fmt: skip
    assert again != folder
    assert refused == []
    same = ("song_id", "path", "genre", "emotion", "group", "split", "year", "bars", "tokens")
    assert [[r[k] for k in same] for r in second] == [[r[k] for k in same] for r in first]


def test_training_on_a_manifest(midigenre, home, collection):
    status, out, err = midigenre(
        "train", "corpus=manifest", f"corpus.path={collection}", *SMALL, "n_workers=1",
        "labels.map.genre.g3=g2", "corpus.labels=[genre]",
    )  # fmt: skip
    assert status == 0, err
    evaluation = json.loads((home / out.strip() / "evaluation.json").read_text())
    assert evaluation["genre"]["song"]["labels"] == ["g0", "g1", "g2"]
    assert evaluation["genre"]["song"]["n"] == 16


# Folders


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Genres with names that no grammar likes, artists in the file names, a song in two genres."""
    root = tmp_path_factory.mktemp("genres")
    for g, genre in enumerate(("R&B", "Hip Hop", "80s", "música", "odd.one")):
        for i in range(9):
            song(root / genre / f"Artist {i // 3} of {g} - {i}.mid", g, i, 100 * g + i)
    for genre in ("R&B", "Hip Hop"):
        song(root / genre / "both.mid", 0, 0, 999)
    return root


def test_groups_by_a_pattern(midigenre, home, folders):
    pattern = r"(?P<group>[^/]+) - [^/]*\.mid$"
    _, manifest, refused, report, err = prepared(
        midigenre,
        home,
        "corpus=folder",
        f"corpus.root={folders}",
        f"corpus.group_pattern={pattern}",
    )
    splits = defaultdict(set)
    for row in manifest:
        splits[row["group"]].add(row["split"])
    assert len(splits) == 15
    assert all(len(held) == 1 for held in splits.values())
    assert set.union(*splits.values()) == {"train", "val", "test"}
    assert any("does not match 2 of 47 files" in w for w in report["warnings"])
    assert {r["reason"] for r in refused} == {"label_conflict"}
    assert "1 song is listed under genre 'Hip Hop' and 'R&B'" in " ".join(err.split())


def test_any_class_can_be_mapped(midigenre, home, folders):
    _, manifest, refused, report, _ = prepared(
        midigenre, home, "corpus=folder", f"corpus.root={folders}",
        "labels.map.genre.R&B=soul & R'n'B, old", "labels.map.genre.Hip Hop=rap",
        "labels.map.genre.80s=rap", "labels.map.genre.música=null",
        "labels.map.genre.odd.one=no=one",
    )  # fmt: skip
    assert Counter(r["genre"] for r in manifest) == {
        "soul & R'n'B, old": 9, "rap": 18, "no=one": 9,
    }  # fmt: skip
    assert Counter(r["reason"] for r in refused) == {"dropped_label": 9, "label_conflict": 2}
    assert list(report["classes"]["genre"]) == ["no=one", "rap", "soul & R'n'B, old"]


MISTAKES = {
    "an unknown class": (["corpus=toy", "labels.map.genre.walz=x"], ["walz", "waltz"]),
    "an unknown label": (["corpus=toy", "labels.map.mood.sad=x"], ["labels.map.mood", "emotion"]),
    "no class": (["corpus=toy", "labels.map.genre=x"], ["labels.map.genre=x", "CLASS=NAME"]),
    "no number": (["corpus=toy", "labels.min_songs=many"], ["labels.min_songs=many"]),
    "too much": (["corpus=toy", "labels.min_songs=999"], ["min_songs=999", "leaves no song"]),
    "no table": (["corpus=manifest"], ["corpus.path=FILE.csv"]),
    "a table that is not there": (["corpus=manifest", "corpus.path=a b.csv"], ["a b.csv", "exist"]),
    "no expression": (["corpus=folder", "corpus.root=.", "corpus.group_pattern=(["],
                      ["group_pattern=([", "not a regular expression"]),
    "no such other": (["corpus=xmidi", "corpus.root=.", "corpus.other=song"],
                      ["corpus.other=song", "choose", "drop"]),
}  # fmt: skip


@pytest.mark.parametrize("command", ["prepare", "train"])
@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_end_in_one_clear_line(what, command, midigenre):
    arguments, words = MISTAKES[what]
    status, out, err = midigenre(command, *arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1, err
    assert all(word in err for word in words), err


# Labels of one's own


@pytest.fixture(scope="module")
def composers(tmp_path_factory):
    """36 songs under ``<composer>/``, and a table of them with three labels; one is ``type``."""
    root = tmp_path_factory.mktemp("composers")
    with (root / "songs.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "composer", "type", "mood"])
        for i in range(36):
            name = f"{['Ann', 'Bob', 'Cy'][i % 3]}/{i}.mid"
            song(root / name, i % 3, i // 3 % 2, i)
            table.writerow([name, name.partition("/")[0], "ab"[i // 3 % 2], "" if i % 4 else "x"])
    return root


def test_labels_of_ones_own(midigenre, home, composers):
    corpus = ("corpus=manifest", f"corpus.path={composers / 'songs.csv'}", "n_workers=1",
              "corpus.labels=[composer,type,mood]", "tokenizer=octuple")  # fmt: skip
    status, out, err = midigenre("train", *corpus, *SMALL, "task.labels=[composer,type]")
    assert status == 0, err
    run = out.strip()
    assert run.startswith("runs/manifest-octuple-tiny-composer_type/")
    assert "composer: scores of songs" in err
    assert "type: scores of songs" in err
    assert "mood: scores" not in err
    evaluation = json.loads((home / run / "evaluation.json").read_text())
    assert {label: levels["song"]["labels"] for label, levels in evaluation.items()} == {
        "composer": ["Ann", "Bob", "Cy"], "type": ["a", "b"]
    }  # fmt: skip
    assert set(evaluation["type"]["phrase"]["baselines"]) >= {"majority", "ngram_lr"}
    songs = rows(home / run / "predictions_songs.csv")
    assert {"composer", "composer_model", "type_ngram_lr"} <= set(songs[0])
    status, out, err = midigenre("predict", f"run={run}", "explain=true", "--", composers / "Bob")
    assert status == 0, err
    told = [json.loads(line) for line in out.splitlines()]
    assert len(told) == 12
    assert {"composer", "type"} <= set(told[0])
    assert "genre" not in told[0]
    status, out, err = midigenre("evaluate", f"run={run}", "corpus=folder", "subset=all",
                                 f"corpus.root={composers}", "corpus.label=composer")  # fmt: skip
    assert status == 0, err
    assert json.loads((home / out.strip()).read_text())["composer"]["song"]["n"] == 36
    status, out, _ = midigenre("compare", "label=type", "--", run)
    assert status == 0
    assert "composer" in out


def test_pieces_of_several_files(midigenre, home, composers):
    """Files of one group are scored together, too, in one split and over the folds."""
    table = composers / "pieces.csv"
    with table.open("w", newline="") as file:
        written = csv.writer(file)
        written.writerow(["path", "genre", "group"])
        for row in rows(composers / "songs.csv"):
            n = int(Path(row["path"]).stem)
            written.writerow([row["path"], row["composer"], f"piece {n % 3}.{n // 6}"])
    corpus = ("corpus=manifest", f"corpus.path={table}", "n_workers=1", "tokenizer=octuple")
    status, out, err = midigenre("train", *corpus, *SMALL, "protocol=crossval", "protocol.folds=2")
    assert status == 0, err
    assert "model, of pieces" in err
    assert "interval over 18 pieces]" in err
    run = home / out.strip()
    levels = json.loads((run / "evaluation.json").read_text())["genre"]
    assert {level: (of["n"], of["n_pieces"]) for level, of in levels.items()
            if level != "phrase"} == {"song": (36, 18), "piece": (18, 18)}  # fmt: skip
    assert set(levels["piece"]["baselines"]) == {"majority", "metadata", "ngram_lr", "hist_gb"}
    pieces = rows(run / "predictions_pieces.csv")
    assert len({row["piece"] for row in pieces}) == 18
    status, out, err = midigenre("evaluate", f"run={run}/fold-1-of-2")
    assert status == 0, err
    assert "genre: scores of pieces" in err
    status, out, err = midigenre("compare", "level=piece", "--", run)
    assert status == 0, err
    assert "piece macro-F1" in out


def test_a_folder_of_another_label(midigenre, home, composers):
    status, out, err = midigenre("train", "corpus=folder", f"corpus.root={composers}", *SMALL,
                                 "n_workers=1", "corpus.label=composer", "task=classify",
                                 "task.labels=composer", "data.balance=1")  # fmt: skip
    assert status == 0, err
    assert set(json.loads((home / out.strip() / "evaluation.json").read_text())) == {"composer"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["task=classify"], ["task.labels=[]", "task.labels=[composer]"]),
        (["task.labels=[mood]"], ["'mood'", "genre, emotion", "task.labels=[LABEL,...]"]),
        (["corpus=folder", "corpus.root=.", "corpus.label=split"], ["corpus.label", "'split'"]),
    ],
)
def test_labels_that_are_not_there(midigenre, arguments, words):
    status, out, err = midigenre("train", "corpus=toy", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert all(word in err for word in words), err


def test_shards_are_used_as_they_are(midigenre, home):
    folder, *_ = prepared(midigenre, home, "corpus=toy")
    status, _, err = midigenre("train", f"shards={folder}", "labels.min_songs=3", "model=tiny")
    assert status == 2
    assert "used as it is" in err


# Names in overrides

TEXT = st.text(
    alphabet=st.sampled_from("abN \\'\"${}=,[]()#~:*.-_1é&/\udcff"), min_size=1, max_size=8
)


@given(TEXT, TEXT)
@settings(max_examples=100, deadline=None)
def test_any_class_name_arrives_as_it_is(source, name):
    (override,) = overrides_of([f"labels.map.genre.{source.replace('=', '')}={name}"])
    source = source.replace("=", "")
    if not source:
        return
    parsed = OverridesParser.create().parse_override(override)
    assert not parsed.is_sweep_override()
    cfg = OmegaConf.create({"labels": {"map": {}}})
    OmegaConf.set_struct(cfg, True)
    OmegaConf.update(cfg, parsed.key_or_group, parsed.value(), merge=True, force_add=True)
    plain_names(cfg)
    assert OmegaConf.to_container(cfg.labels.map, resolve=True) == {"genre": {source: name}}


@pytest.mark.parametrize("source", ["null", "True", "nan", "80", "007", "a", "a-b_c"])
def test_words_and_numbers_are_names(source):
    (override,) = overrides_of([f"labels.map.genre.{source}=null"])
    parsed = OverridesParser.create().parse_override(override)
    cfg = OmegaConf.create({"labels": {"map": parsed.value()}})
    plain_names(cfg)
    assert OmegaConf.to_container(cfg.labels.map, resolve=True) == {"genre": {source: None}}
