"""``train init_from=RUN``: a run begins with the weights of another one."""

import csv
import json
import shutil

import pytest
import torch

SMALL = ("corpus=toy", "corpus.n_songs=48", "model.d_model=32", "model.n_heads=2",
         "model.n_layers=1", "model.d_ff=32", "data.batch_phrases=16")  # fmt: skip
GENERATE = (*SMALL, "task=generate", "data.phrase_bars=4", "trainer.max_epochs=1")


def last(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def source(toy_run, home):
    """The classifier under a name that a shell can pass."""
    folder = home / "a run = [new], #2"
    shutil.copytree(home / toy_run, folder)
    return folder


def test_a_generator_begins_with_a_classifiers_weights(source, home, midigenre, monkeypatch):
    saved = torch.load(source / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    shared = {k: v for k, v in saved.items() if k.startswith(("model.embedding", "model.backbone"))}
    monkeypatch.setenv("WEIGHTS_TO", str(home / "before.pt"))
    spy = "+callbacks.spy._target_=spies.WriteWeights"
    status, out, err = midigenre("train", *GENERATE, f"init_from={source}", "name=started", spy)
    assert status == 0, err
    before = torch.load(home / "before.pt", weights_only=True)
    for name, value in shared.items():
        assert torch.equal(before[name], value), name
    n_all = sum(v.numel() for v in before.values())
    n_shared = sum(v.numel() for v in shared.values())
    line = f"started from {source}: embedding and backbone, {n_shared:,} of {n_all:,} weights"
    assert line in err.replace("\n", "")
    run = home / out.strip()
    assert line in (run / "train.log").read_text()
    assert any(not torch.equal(value, last(run)[name]) for name, value in shared.items())

    # A run that goes on has its own weights: the other one may be gone, and the config keeps it.
    moved = source.rename(home / "moved")
    status, _, err = midigenre("train", f"resume={run}", "trainer.max_epochs=2")
    moved.rename(source)
    assert status == 0, err
    assert "started from" not in err
    assert "resumes after 9 steps" in err
    assert f"init_from: '{source}'" in (run / "config.yaml").read_text()


def test_stopped_before_its_first_checkpoint_it_starts_from_there_again(source, home, midigenre):
    best = source / "checkpoints" / "best.ckpt"
    short = (*GENERATE, f"init_from={best}", "trainer.max_steps=2")
    status, out, err = midigenre("train", *short, "name=unharmed-start")
    assert status == 0, err
    whole, early = home / out.strip(), home / "runs" / "early-start" / "one"
    early.mkdir(parents=True)
    shutil.copy(whole / "config.yaml", early)
    status, _, err = midigenre("train", f"resume={early}")
    assert status == 0, err
    assert f"started from {best}" in err.replace("\n", "")
    assert "stopped before its first checkpoint: it starts over" in err
    weights = last(whole)
    assert all(torch.equal(value, weights[name]) for name, value in last(early).items())


def test_a_refused_start_leaves_nothing(source, home, midigenre):
    before = {p for name in ("runs", "shards", "corpora") for p in (home / name).rglob("*")}
    status, _, err = midigenre(
        "train", *SMALL, "tokenizer=cp", f"init_from={source}", "corpus.seed=5", "name=refused"
    )
    assert status == 2
    assert err.strip().splitlines()[-1].startswith("midigenre: init_from: ")
    assert "tokenizer 'remi', this is 'cp'" in err
    after = {p for name in ("runs", "shards", "corpora") for p in (home / name).rglob("*")}
    assert after == before


def test_songs_that_the_start_has_learnt_are_told(toy_run, home, midigenre):
    short = (
        "train",
        *SMALL,
        "model.intervals=false",
        f"init_from={toy_run}",
        "trainer.max_steps=1",
    )
    status, _, err = midigenre(*short, "name=same-split")
    assert status == 0, err
    assert "is a classifier trained on" not in err
    status, out, err = midigenre(*short, "split.seed=1", "name=other-split")
    assert status == 0, err
    rows = {}
    for run in (home / toy_run, home / out.strip()):
        manifest = home / json.loads((run / "spec.json").read_text())["shards"] / "manifest.csv"
        with manifest.open(newline="", encoding="utf-8") as file:
            rows[run] = {row["song_id"]: row["split"] for row in csv.DictReader(file)}
    there, here = rows.values()
    tested = [song for song, split in here.items() if split == "test"]
    shared = sum(there[song] != "test" for song in tested)
    assert shared > 0
    expected = (
        f"init_from={toy_run} is a classifier trained on labels and notes of {shared} of the "
        f"{len(tested)} test songs here"
    )
    assert expected in " ".join(err.split())
    # Other songs under the same names are none of it.
    status, _, err = midigenre(*short, "corpus.seed=5", "name=other-songs")
    assert status == 0, err
    assert "is a classifier trained on" not in err
