"""``task=mlm``: pretraining without labels, and starting from it."""

import csv
import json
import signal

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_runs import SMALL

from midigenre.corpora.toy import Toy

SHORT = (*SMALL, "task=mlm", "data.phrase_bars=4", "trainer.log_every_n_steps=1")


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("remi", ("tokenizer=remi",)),
        ("octuple-bar", ("tokenizer=octuple", "task.strategy=bar", "task.structure=true")),
        ("tsd-element", ("tokenizer=tsd", "task.strategy=element")),
    ],
)
def test_a_masked_model_leaves_a_complete_run(midigenre, home, name, more):
    status, out, err = midigenre(
        "train", *SHORT, *more, f"name=mlm-{name}", "trainer.max_epochs=2", "optim.lr=0.003"
    )
    assert status == 0, err
    folder = home / out.strip().splitlines()[-1]
    found = json.loads((folder / "evaluation.json").read_text())["masked"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert f"train experiment=finetune init_from={folder.relative_to(home)}" in err
    if "tsd" in name:
        assert found["nats_per_note"] is None
        assert "no nats per note" in err
    else:
        low, high = found["ci95"]["nats_per_note"]
        assert low <= found["nats_per_note"] <= high
        assert metrics["test"]["test/nats_per_note"] == found["nats_per_note"]
        assert f"{found['nats_per_note']:.3f} nats per note" in err
    assert 0 < found["accuracy"] < 1
    assert metrics["test"]["test/loss"] == found["loss"]
    assert metrics["test"]["test/Pitch/accuracy"] == found["fields"]["Pitch"]["accuracy"]
    assert {"Bar", "Position", "Tempo"} <= set(found["fields"]) or "octuple" not in name
    events = EventAccumulator(str(folder))
    events.Reload()
    shown = set(events.Tags()["scalars"])
    assert {"train/loss", "compare/val/loss", "val/perplexity", "val/accuracy",
            "val/Pitch/accuracy", "val/Velocity/perplexity",
            "trained/test_loss"} <= shown  # fmt: skip
    losses = [event.value for event in events.Scalars("compare/val/loss")]
    assert losses[-1] < losses[0]


def test_a_classifier_and_a_generator_start_from_it_and_it_is_neither(midigenre, home):
    plain = "model.intervals=false"  # a generator has none
    status, out, err = midigenre("train", *SHORT, plain, "name=mlm-start", "trainer.max_steps=2")
    assert status == 0, err
    run = out.strip().splitlines()[-1]
    weights = torch.load(home / run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    n = sum(
        v.numel() for k, v in weights.items() if k.startswith(("model.embedding", "model.backbone"))
    )
    for task, more in (("genre", (plain,)), ("generate", ("data.phrase_bars=2",))):
        status, _, err = midigenre(
            "train", *SMALL, f"task={task}", *more, f"name=from-mlm-{task}", f"init_from={run}",
            "trainer.max_steps=1",
        )  # fmt: skip
        assert status == 0, err
        assert f"started from {run}: embedding and backbone, {n:,} of " in err
    song = next((home / "corpora").glob("toy-*/*/*.mid"))
    status, _, err = midigenre("predict", f"run={run}", "--", str(song))
    assert status == 2
    assert "is a masked model (task=mlm), and this needs a classifier" in err
    status, _, err = midigenre("compare", "--", run)
    assert status == 2
    assert "a masked model (" in err
    assert "nats per note, token accuracy" in err


def test_songs_without_labels_train_and_no_test_song_does(midigenre, home, tmp_path, monkeypatch):
    songs = [song.path for song in Toy(n_songs=24).songs(tmp_path).songs]
    splits = ["train"] * 16 + ["val"] * 4 + ["test"] * 4
    table = tmp_path / "songs.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "genre", "song_id", "split"])
        for i, (song, split) in enumerate(zip(songs, splits, strict=True)):
            genre = ("a", "b")[i % 2] if split != "train" or i < 4 else "unknown"
            rows.writerow([str(song), genre, f"s{i:02d}", split])
    monkeypatch.setenv("BATCHES_TO", str(tmp_path))
    status, out, err = midigenre(
        "train", "corpus=manifest", f"corpus.path={table}", *SHORT[2:], "name=mlm-unlabelled",
        "trainer.max_epochs=1", "+callbacks.spy._target_=spies.WriteBatches",
        "labels.map.genre.unknown=",
    )  # fmt: skip
    assert status == 0, err
    shards = json.loads((home / out.strip() / "spec.json").read_text())["shards"]
    with open(f"{shards}/manifest.csv", newline="", encoding="utf-8") as file:
        rows_kept = list(csv.DictReader(file))
    batches = map(json.loads, (tmp_path / "0.jsonl").read_text().splitlines())
    seen = {rows_kept[song]["song_id"] for batch in batches for song, _ in batch["phrases"]}
    assert sum(row["genre"] == "" for row in rows_kept) == 12
    assert seen == {f"s{i:02d}" for i in range(16)}


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(midigenre, home, monkeypatch):
    settings = (*SHORT, "tokenizer=octuple", "trainer.max_epochs=3",
                "+callbacks.signal._target_=spies.SignalAt")  # fmt: skip
    assert midigenre("train", *settings, "name=mlm-whole")[0] == 0
    monkeypatch.setenv("SIGNAL_AT", f"{signal.SIGTERM.value}:13")
    assert midigenre("train", *settings, "name=mlm-parts")[0] == 143
    monkeypatch.delenv("SIGNAL_AT")
    (whole,), (parts,) = ((home / "runs" / f"mlm-{n}").iterdir() for n in ("whole", "parts"))
    status, _, err = midigenre("train", f"resume={parts.relative_to(home)}")
    assert status == 0, err
    for file in ("metrics.json", "evaluation.json"):
        assert (whole / file).read_text() == (parts / file).read_text()
    one, other = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (whole, parts)
    )
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("tokenizer=midilike291",), "tokenizer.special_tokens=[PAD,BOS,EOS,MASK]"),
        (("tokenizer=tsd", "task.strategy=bar"), "strategy=bar needs bars"),
        (("task.strategy=notes",), "element, compound, bar"),
        (("task.share=0",), "share=0 must be above 0"),
        (("task.eval_share=2",), "eval_share=2 must be above 0"),
    ],
)
def test_what_cannot_be_masked_is_refused_before_the_songs_are_read(midigenre, more, message):
    status, _, err = midigenre("train", *SHORT, *more, "corpus.n_songs=999")
    assert status == 2
    assert message in err.replace("\n", "")
    assert "Traceback" not in err


def test_the_named_setting_gives_a_vocabulary_its_mask(midigenre):
    status, _, err = midigenre(
        "train", *SHORT, "tokenizer=midilike291", "name=mlm-291", "trainer.max_steps=1",
        "tokenizer.special_tokens=[PAD,BOS,EOS,MASK]",
    )  # fmt: skip
    assert status == 0, err
