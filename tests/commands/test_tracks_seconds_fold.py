"""``corpus.tracks``, ``data.phrase_seconds`` and ``fold`` from the command line to the answer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from midigenre.cli import main
from midigenre.data.datamodule import PhraseDataModule
from midigenre.data.shards import ShardSet
from midigenre.tasks.base import CHECKPOINT_KEY
from midigenre.trained import load_run

SMALL = ("corpus=toy", "corpus.n_songs=48", "model.d_model=32", "model.n_heads=2",
         "model.n_layers=1", "model.d_ff=32", "data.batch_phrases=16")  # fmt: skip
LENGTH = ("data.phrase_seconds=6", "data.phrase_bars=null")

MISTAKES = {
    "both lengths": (
        ["train", "data.phrase_seconds=8"],
        ["phrase_bars=4", "phrase_seconds=8", "the other to null"],
    ),
    "no length": (["train", "data.phrase_bars=null"], ["phrase_bars=null", "phrase_seconds=null"]),
    "no length to prepare for": (
        ["prepare", "corpus=toy", "corpus.n_songs=16", "data.phrase_bars=null"],
        ["set exactly one"],
    ),
    "a length below 0": (
        ["train", "data.phrase_bars=null", "data.phrase_seconds=-1"],
        ["data.phrase_seconds", "-1"],
    ),
    "a fold too many": (["train", "fold=3/2"], ["fold=3/2", "i/n"]),
    "fold 0": (["train", "fold=0/2"], ["fold=0/2", "i/n"]),
    "no fold": (["train", "fold=abc"], ["fold=abc", "fold=1/2"]),
    "unknown tracks of a corpus": (
        ["train", "corpus=toy", "corpus.tracks=top"],
        ["corpus.tracks=top", "all, melody, merged"],
    ),
    "unknown tracks of a tokenizer": (
        ["train", "corpus=toy", "tokenizer.tracks=top"],
        ["tokenizer.tracks=top", "all, melody, merged"],
    ),
    "tracks that contradict": (
        ["train", "corpus=twelve", "tokenizer.tracks=melody"],
        ["tokenizer.tracks=melody", "tracks=merged", "set corpus.tracks=melody"],
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_end_in_one_clear_line(what, midigenre):
    arguments, words = MISTAKES[what]
    status, out, err = midigenre(*arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1, err
    assert all(word in err for word in words), err


@pytest.mark.parametrize("tracks", ["all", "melody", "merged"])
def test_prepare_keeps_the_tracks_that_are_asked_for(tracks, midigenre):
    status, out, err = midigenre(
        "prepare", "corpus=toy", "corpus.n_songs=32", f"corpus.tracks={tracks}"
    )
    assert status == 0, err
    shards = ShardSet(Path(out.strip()))
    assert shards.tokens.tokenizer["tracks"] == tracks
    assert shards.tokens.tokenizer["neutral"] is False
    types = {t for f in shards.tokens.fields for t in f.types}
    assert ("Program" in types) == (tracks == "all")
    assert "Velocity" in types
    programs, alone = set(), []
    for i in range(len(shards)):
        notes = shards.song(i).notes
        programs |= set(notes.program.tolist())
        alone.append(bool((np.diff(notes.onset) > 0).all()))
    assert (programs == {0}) == (tracks != "all")
    assert all(alone) == (tracks == "melody")


def test_tokenizer_tracks_holds_where_the_corpus_asks_for_nothing(midigenre):
    """The same vocabulary and the same tokens as by ``corpus.tracks``; other shards refuse it."""
    common = ("prepare", "corpus=toy", "corpus.n_songs=16")
    one, other, whole = (
        ShardSet(Path(midigenre(*common, *more)[1].strip()))
        for more in (["tokenizer.tracks=melody"], ["corpus.tracks=melody"], [])
    )
    assert one.tokens == other.tokens
    np.testing.assert_array_equal(one.encoded(3).ids_TF, other.encoded(3).ids_TF)
    status, _, err = midigenre("train", f"shards={whole.folder}", "tokenizer.tracks=melody")
    assert status == 2
    assert "other settings of 'remi' (tracks=all there, melody here)" in err


@pytest.fixture(scope="module")
def run(home):
    """Trained on the melodies of half the songs, in phrases of six seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.delenv("MIDIGENRE_HOME", raising=False)
        status = main(
            ["train", *SMALL, *LENGTH, "corpus.tracks=melody", "fold=1/2", "name=half",
             "trainer.max_epochs=1"]
        )  # fmt: skip
        assert status == 0
        (folder,) = (home / "runs" / "half").iterdir()
    return folder.relative_to(home)


def data_of(run, home):
    """The songs and phrases of a run, as its checkpoint says."""
    shards = json.loads((home / run / "spec.json").read_text())["shards"]
    return PhraseDataModule(home / shards, **load_run(str(home / run)).data)


def test_a_run_remembers_them(run, home):
    content = torch.load(home / run / "checkpoints" / "best.ckpt", weights_only=True)
    assert content[CHECKPOINT_KEY]["data"] == {
        "phrase_bars": None,
        "phrase_seconds": 6,
        "max_tokens": 1024,
        "marks": False,
        "fold": "1/2",
    }
    assert content[CHECKPOINT_KEY]["tokens"]["tokenizer"]["tracks"] == "melody"
    assert json.loads((home / run / "metrics.json").read_text())["fold"] == "1/2"
    data = data_of(run, home)
    n, total = len(data.rows("train")), len(data.shards.rows("train"))
    assert 0 < n < total
    assert f"fold 1/2: {n} of {total} training songs" in (home / run / "train.log").read_text()


def test_another_fold_shares_the_shards_and_tests_on_the_same_songs(run, home, midigenre):
    first = data_of(run, home)
    before = set((home / "shards").iterdir())
    status, out, err = midigenre(
        "train", *SMALL, *LENGTH, "corpus.tracks=melody", "fold=2/2", "name=other",
        "trainer.max_epochs=1",
    )  # fmt: skip
    assert status == 0, err
    assert set((home / "shards").iterdir()) == before
    second = data_of(Path(out.strip().splitlines()[-1]), home)
    assert second.rows("test").tolist() == first.rows("test").tolist()
    for split in ("train", "val"):
        ours, theirs = set(first.rows(split).tolist()), set(second.rows(split).tolist())
        assert not ours & theirs
        assert ours | theirs == set(first.shards.rows(split).tolist())


@pytest.mark.slow
def test_evaluate_reads_the_runs_own_fold(run, home, midigenre):
    data = data_of(run, home)
    for subset in ("train", "test"):
        status, out, err = midigenre("evaluate", f"run={run}", f"subset={subset}")
        assert status == 0, err
        scores = json.loads((home / out.strip().splitlines()[-1]).read_text())["genre"]
        assert scores["song"]["n"] == len(data.rows(subset))
        assert scores["phrase"]["n"] == len(data.phrases(subset))
    # Any other corpus is read whole, as the run reads its own.
    status, out, err = midigenre(
        "evaluate", f"run={run}", "corpus=toy", "corpus.n_songs=16", "subset=all"
    )
    assert status == 0, err
    scores = json.loads((home / out.strip().splitlines()[-1]).read_text())["genre"]
    assert scores["song"]["n"] == 16


def test_predict_cuts_the_same_phrases(run, home, midigenre):
    data = data_of(run, home)
    row = int(data.rows("test")[0])
    status, out, err = midigenre("predict", f"run={run}", "--", data.shards.manifest[row]["path"])
    assert status == 0, err
    phrases = json.loads(out)["phrases"]
    mine = data.phrases("test").song == row
    found = data.phrases("test").select(mine)
    assert [p["bars"] for p in phrases] == np.stack([found.first, found.end], 1).tolist()
    seconds = [b - a for a, b in (p["seconds"] for p in phrases)]
    bar = max(np.diff(data.shards.bar_seconds(row)))
    assert all(abs(s - 6) <= bar / 2 + 0.01 for s in seconds[:-1])
    assert len(seconds) > 1


def test_inspect_shows_the_phrases(run, home, midigenre):
    data = data_of(run, home)
    row = int(data.rows("test")[0])
    song = data.shards.manifest[row]["song_id"]
    status, out, err = midigenre("inspect", f"path={data.shards.folder}", f"song={song}", *LENGTH)
    assert status == 0, err
    found = data.phrases("test").select(data.phrases("test").song == row)
    for i, (first, end) in enumerate(zip(found.first, found.end, strict=True)):
        assert f"phrase {i}: bars {first + 1} to {end}," in err
    assert f"phrase {len(found)}:" not in err
    assert "Pitch" in out
    assert "Program" not in out


def test_prepare_reports_seconds(midigenre):
    status, out, err = midigenre("prepare", "corpus=toy", "corpus.n_songs=16", *LENGTH)
    assert status == 0, err
    report = json.loads((Path(out.strip()) / "report.json").read_text())
    assert (report["phrase_bars"], report["phrase_seconds"]) == (None, 6)
    assert "steps per phrase of about 6 seconds" in err
    status, _, err = midigenre("prepare", "corpus=toy", "corpus.n_songs=16")
    assert "steps per phrase of 4 bars" in err


def test_a_class_without_a_training_song_is_named(midigenre, home):
    """Trained all the same, as a class that the corpus lacks."""
    status, out, err = midigenre(
        "train", *SMALL, "corpus.n_songs=32", "fold=2/4", "name=quarter", "trainer.max_epochs=1"
    )  # fmt: skip
    assert status == 0, err
    data = data_of(Path(out.strip().splitlines()[-1]), home)
    assert data.classes_lost()["genre"] == ["waltz"]
    assert "warning: genre 'waltz' has no training song in fold 2/4" in err
    assert "rock' has no training song" not in err
