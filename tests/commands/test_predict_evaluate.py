"""``predict``, ``evaluate``, ``inspect`` and ``prepare`` on a trained run."""

import csv
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mido import MidiFile

from midi import make_score, melody, midi_file, note, to_bytes
from midigenre.commands.evaluate import class_maps
from midigenre.corpora.toy import Toy
from midigenre.errors import UserError
from midigenre.files import write_csv
from midigenre.spec import UNKNOWN, LabelSpec

NOTE = b"\x00\x90\x3c\x40\x83\x60\x80\x3c\x40"  # a quarter


@pytest.fixture
def songs(home):
    """MIDI files of the toy run's corpus, by genre; other tests leave toy corpora beside it."""
    return sorted(song.path for song in Toy(n_songs=48).songs(home / "corpora").songs)


def answers(out):
    return [json.loads(line) for line in out.splitlines()]


def test_predict_names_genre_emotion_and_a_timeline(midigenre, toy_run, songs):
    status, out, _ = midigenre("predict", f"run={toy_run}", "--", *map(str, songs[:12]))
    assert status == 0
    found = answers(out)
    assert [a["path"] for a in found] == [str(s) for s in songs[:12]]
    right = sum(a["genre"] == s.parent.name for a, s in zip(found, songs, strict=False))
    assert right >= 11
    for answer in found:
        for label in ("genre", "emotion"):
            probabilities = answer["probabilities"][label]
            assert sum(probabilities.values()) == pytest.approx(1, abs=0.001)
            assert answer[label] == max(probabilities, key=probabilities.get)
        phrases = answer["phrases"]
        assert phrases[0]["bars"][0] == 0
        for before, after in itertools.pairwise(phrases):
            assert before["bars"][1] == after["bars"][0]
            assert before["seconds"][1] == after["seconds"][0] > before["seconds"][0]


def test_seconds_are_those_of_the_file(midigenre, toy_run, tmp_path):
    """Slower than any vocabulary's tempi, after two bars of silence, with a change in a bar."""
    score = make_score(melody(8, start=8), tempi=[(0, 30.0), (14, 300.0)])
    path = tmp_path / "a.mid"
    path.write_bytes(to_bytes(score))
    slow, fast = 2.0, 0.2  # seconds a quarter
    at_bar = {0: 0.0, 4: 14 * slow + 2 * fast, 8: 14 * slow + 18 * fast, 10: 14 * slow + 26 * fast}
    assert MidiFile(path).length == pytest.approx(at_bar[10], abs=0.01)
    status, out, err = midigenre("predict", f"run={toy_run}", "--", str(path))
    assert status == 0, err
    found = answers(out)[0]["phrases"]
    assert [p["bars"] for p in found] == [[0, 4], [4, 8], [8, 10]]
    for phrase in found:
        assert phrase["seconds"] == pytest.approx([at_bar[b] for b in phrase["bars"]], abs=0.01)


def test_a_checkpoint_alone_predicts_the_same_elsewhere(midigenre, toy_run, songs, home, tmp_path):
    files = [str(s) for s in songs[:4]]
    # What calibrates it lies in the run's folder.
    _, here, _ = midigenre("predict", f"run={toy_run}", "calibrate=false", "--", *files)
    alone = tmp_path / "only this.ckpt"
    shutil.copy(home / toy_run / "checkpoints" / "best.ckpt", alone)
    torch.load(alone, weights_only=True)  # plain data
    # Another process, another folder, no corpus, no shards, no run folder.
    done = subprocess.run(
        [sys.executable, "-m", "midigenre", "predict", f"ckpt={alone}", "--", *files],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "HOME": str(tmp_path), "MIDIGENRE_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert answers(done.stdout) == answers(here)
    # Libraries may keep hidden caches in HOME; the command leaves nothing.
    assert [p.name for p in tmp_path.iterdir() if p.name[0] != "."] == ["only this.ckpt"]


def test_predict_goes_on_past_bad_files(midigenre, toy_run, songs, tmp_path):
    folder = tmp_path / "an odd [folder]=#1"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(songs[0], folder / "deep" / "good, one.MID")
    (folder / "a text.mid").write_text("this is no MIDI file at all")
    (folder / "empty.mid").write_bytes(b"")
    (folder / "notes.txt").write_text("not looked at")
    status, out, err = midigenre("predict", f"run={toy_run}", "--", str(folder))
    assert status == 0
    found = {a["path"].rsplit("/", 1)[-1]: a for a in answers(out)}
    assert set(found) == {"good, one.MID", "a text.mid", "empty.mid"}
    assert found["a text.mid"]["error"] == found["empty.mid"]["error"] == "unreadable"
    assert "genre" in found["good, one.MID"]
    assert "a text.mid" in err
    assert "empty.mid" in err


def test_what_was_mended_or_cut_is_said(midigenre, toy_run, songs, tmp_path):
    """In the words of the manifest; the table for spreadsheets says the same."""
    broken = midi_file(NOTE * 8, length=10_000)[:-7]  # in the middle of a note-off, without an end
    notes = [note(k / 64, 1 / 8, 30 + k % 90) for k in range(2_000)]
    for name, data in {"a cut.mid": broken, "b long.mid": to_bytes(make_score(notes))}.items():
        (tmp_path / name).write_bytes(data)
    shutil.copy(songs[0], tmp_path / "c.mid")
    (tmp_path / "d.mid").write_text("no music")
    (tmp_path / "one").mkdir()
    shutil.copy(tmp_path / "a cut.mid", tmp_path / "one")
    _, out, _ = midigenre("prepare", "corpus=folder", f"corpus.root={tmp_path}")
    with open(Path(out.strip()) / "manifest.csv") as file:
        (row,) = [r for r in csv.DictReader(file) if r["path"].endswith("cut.mid")]
    call = ("predict", f"run={toy_run}", "threshold=0.999999")
    status, out, err = midigenre(*call, "--", str(tmp_path))
    assert status == 0, err
    found = answers(out)
    cut, long, good, bad = found[:4]
    assert cut["repairs"] == json.loads(row["repairs"])
    assert "tracks cut at their last whole event" in cut["repairs"]
    assert (good["repairs"], good["phrases_cut"]) == ({}, 0)
    assert long["phrases_cut"] == len(long["phrases"]) > 0
    status, out, err = midigenre(*call, "format=csv", "--", str(tmp_path))
    assert status == 0, err
    table = list(csv.DictReader(io.StringIO(out, newline="")))
    assert [r["path"] for r in table] == [a["path"] for a in found]
    for r, a in zip(table[:3], found, strict=False):
        assert r["genre"] == (a["genre"] or "")
        assert float(r["genre_probability"]) == max(a["probabilities"]["genre"].values())
        assert float(r["emotion_probability_calm"]) == a["probabilities"]["emotion"]["calm"]
        assert int(r["phrases"]) == len(a["phrases"])
        assert int(r["phrases_cut"]) == a["phrases_cut"]
        assert json.loads(r["repairs"] or "{}") == a["repairs"]
        assert r["abstained"] == str(a["abstained"])
    assert (table[3]["error"], table[3]["detail"]) == (bad["error"], bad["detail"])
    assert table[3]["genre"] == ""
    status, _, err = midigenre(*call, "format=xls", "--", str(tmp_path))
    assert (status, "choose json, csv" in err) == (2, True)


def test_predict_refuses_a_text_file_in_one_line(midigenre, toy_run, tmp_path):
    (tmp_path / "a.mid").write_text("this is no MIDI file at all")
    status, out, err = midigenre("predict", f"run={toy_run}", "--", str(tmp_path / "a.mid"))
    assert status == 2
    assert [a["error"] for a in answers(out)] == ["unreadable"]
    assert err.count("\n") == 1
    assert "a.mid: unreadable" in err


def test_a_missing_file_is_that_files_error(midigenre, toy_run, songs, tmp_path):
    gone = tmp_path / "gone.mid"
    status, out, err = midigenre("predict", f"run={toy_run}", "--", str(gone), str(songs[0]))
    assert status == 0
    assert [a.get("error") for a in answers(out)] == ["missing", None]
    assert "gone.mid" in err


def test_predict_says_what_run_there_is(midigenre, toy_run):
    status, _, err = midigenre("predict", "run=runs", "--", ".")
    assert status == 2
    status, _, err = midigenre("predict", f"run={toy_run.parent}", "--", "corpora")
    assert status == 2
    assert f"did you mean {toy_run}?" in err


def test_a_damaged_checkpoint_is_refused(midigenre, toy_run, home, tmp_path):
    (tmp_path / "x.ckpt").write_bytes(b"nothing of the sort")
    status, _, err = midigenre("predict", f"ckpt={tmp_path / 'x.ckpt'}", "--", ".")
    assert status == 2
    assert "x.ckpt is not a checkpoint" in err or "no MIDI file" in err


def test_evaluate_repeats_the_test_of_training(midigenre, toy_run, home):
    status, out, err = midigenre("evaluate", f"run={toy_run}")
    assert status == 0, err
    path = home / out.strip()
    assert path == home / toy_run / "evaluation" / "toy-genre_emotion-test.json" or path.is_file()
    assert json.loads(path.read_text()) == json.loads(
        (home / toy_run / "evaluation.json").read_text()
    )
    for kind in ("", "-reliability", "-coverage"):
        figure = path.with_name(f"{path.stem}-genre-song{kind}.png")
        assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_evaluate_subsets_differ(midigenre, toy_run, home):
    n = {}
    for subset in ("train", "val", "test", "all"):
        _, out, _ = midigenre("evaluate", f"run={toy_run}", f"subset={subset}")
        n[subset] = json.loads((home / out.strip()).read_text())["genre"]["song"]["n"]
    assert n["train"] + n["val"] + n["test"] == n["all"] == 48


def test_noise_costs_accuracy_of_the_model_and_of_the_baselines(midigenre, toy_run, home):
    found = {}
    for noise in (
        (),
        ("noise.wrong=1.0", "noise.drop=0.97", "noise.program=1.0"),
        ("noise.jitter_ms=0.01",),
    ):
        status, out, err = midigenre("evaluate", f"run={toy_run}", "subset=all", *noise)
        assert status == 0, err
        found[noise] = json.loads((home / out.strip()).read_text())["genre"]["song"]
        assert Path(out.strip()).name == "-".join(
            ["toy-all", *(of.removeprefix("noise.").removesuffix(".0") for of in noise)]
        ) + ".json"  # fmt: skip
    clean, wrong, none = found.values()
    assert wrong["n"] == clean["n"]
    assert wrong["nll"] > clean["nll"]
    assert wrong["baselines"]["ngram_lr"]["accuracy"] < clean["baselines"]["ngram_lr"]["accuracy"]
    assert none["confusion"] == clean["confusion"]  # rounded away by the grid
    for given, says in (
        ("noise.drop=2", "noise.drop=2"),
        ("noise=0.1", "name what is noisy"),
        ("noise.seed=3", "alone changes nothing"),
    ):
        status, _, err = midigenre("evaluate", f"run={toy_run}", given)
        assert status == 2
        assert says in err


def test_evaluate_on_a_folder_with_some_of_the_labels(midigenre, toy_run, songs, tmp_path, home):
    for song in songs:
        if song.parent.name in ("rock", "swing"):
            (tmp_path / song.parent.name).mkdir(exist_ok=True)
            shutil.copy(song, tmp_path / song.parent.name)
    foreign = ("corpus=folder", f"corpus.root={tmp_path}", "subset=all")
    status, out, err = midigenre("evaluate", f"run={toy_run}", *foreign)
    assert status == 0, err
    evaluation = json.loads((home / out.strip()).read_text())
    assert set(evaluation) == {"genre"}
    scores = evaluation["genre"]["song"]
    assert scores["labels"] == ["waltz", "rock", "ballad", "swing"]
    assert [sum(row) > 0 for row in scores["confusion"]] == [False, True, False, True]
    assert scores["accuracy"] > 0.9
    # Macro-F1 is over the classes that occur.
    f1 = [scores["per_class"][name]["f1"] for name in ("rock", "swing")]
    assert scores["macro_f1"] == pytest.approx(sum(f1) / 2)
    (tmp_path / "rock").rename(tmp_path / "polka")
    status, _, err = midigenre("evaluate", f"run={toy_run}", *foreign)
    assert status == 2
    assert "labels.map.genre.polka=null" in err
    assert "genre waltz, rock, ballad, swing" in err


def test_all_unknown_classes_are_named_at_once(tmp_path):
    """With what to add to the command line; classes of no song do not count."""
    classes = {"genre": ("Waltz", "rock", "R&B", "polka", "none"), "emotion": ("hapy", "calm")}
    indices = {"genre": [0, 1, 2, 3, UNKNOWN], "emotion": [0, 1, 1, 1, UNKNOWN]}
    shards = SimpleNamespace(
        folder=tmp_path, labels=LabelSpec(classes),
        label_indices=lambda: {k: np.array(v) for k, v in indices.items()},
    )  # fmt: skip
    rows = [
        {"song_id": "1", "genre": "Rock", "emotion": "calm", "reason": "label_conflict"},
        {"song_id": "2", "genre": "broken", "emotion": "calm", "reason": "unreadable"},
    ]
    write_csv(tmp_path / "refused.csv", rows, list(rows[0]))
    known = {"genre": ("waltz", "rock"), "emotion": ("calm", "happy")}
    run = SimpleNamespace(
        labels=LabelSpec(known), classifier=SimpleNamespace(label_heads=lambda: known)
    )
    with pytest.raises(UserError) as error:
        class_maps(shards, run)
    assert str(error.value).endswith(
        "(genre waltz, rock; emotion calm, happy), or leave it out with =null: "
        "labels.map.genre.Waltz=waltz 'labels.map.genre.R&B=null' labels.map.genre.polka=null "
        "labels.map.genre.Rock=rock labels.map.emotion.hapy=happy"
    )
    indices |= {"genre": [1, 1, UNKNOWN], "emotion": [1, UNKNOWN, 1]}
    write_csv(tmp_path / "refused.csv", rows[1:], list(rows[0]))
    found = {label: values.tolist() for label, values in class_maps(shards, run).items()}
    assert found == {"genre": [UNKNOWN, 1, *[UNKNOWN] * 3], "emotion": [UNKNOWN, 0]}


def test_inspect_shows_tokens_and_writes_files(midigenre, songs, tmp_path):
    status, out, err = midigenre(
        "inspect", "tokenizer=octuple", f"out={tmp_path}", "--", str(songs[0])
    )
    assert status == 0
    first = out.splitlines()[0].split()
    assert [word.split("_")[0] for word in first][1:3] == ["Position", "Bar"]
    assert re.search(r"phrase 1: bars 5 to 8, \d+\.\d\d to \d+\.\d\d s, \d+ steps", err)
    assert "steps of 8 fields" in err
    (midi,) = tmp_path.glob("*.mid")
    (png,) = tmp_path.glob("*.png")
    assert midi.read_bytes().startswith(b"MThd")
    assert png.read_bytes().startswith(b"\x89PNG")


def test_inspect_finds_a_song_in_shards(midigenre, toy_run):
    _, out, _ = midigenre("prepare", "corpus=toy", "corpus.n_songs=48")
    shards = out.strip()
    status, out, err = midigenre("inspect", f"path={shards}", "song=rock-happy-0004", "phrase=1")
    if status == 2:  # ids are the corpus's own: take one that the error names
        name = err.split("there is ")[1].split(",")[0]
        status, out, err = midigenre("inspect", f"path={shards}", f"song={name}", "phrase=1")
    assert status == 0, err
    assert out.startswith("Bar_None")
    assert "steps of 1 field," in err
    status, _, err = midigenre("inspect", f"path={shards}", "song=nothing like it")
    assert status == 2
    assert "nothing like it" in err


def test_prepare_estimates_and_verifies(midigenre):
    status, out, err = midigenre("prepare", "corpus=toy", "corpus.n_songs=48", "dry_run=true")
    assert (status, out) == (0, "")
    assert "48 songs" in err
    assert "MB" in err
    assert midigenre("prepare", "corpus=toy", "corpus.n_songs=48", "verify=true")[0] == 0
