"""``task=generate``: a generator is trained like any other run."""

import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_runs import SMALL

from midigenre.tasks.base import CHECKPOINT_KEY


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("remi", ("tokenizer=remi",)),
        ("octuple", ("tokenizer=octuple", "task.condition_by=add")),
        ("cp-lstm", ("tokenizer=cp", "model=lstm")),
        ("midilike", ("tokenizer=midilike", "task.conditions=[genre,emotion]")),
    ],
)
def test_a_generator_leaves_a_complete_run(midigenre, home, name, more):
    small = SMALL[:2] if "model=lstm" in more else SMALL
    small = (*small, "model.d_model=32", "model.n_layers=1") if "model=lstm" in more else small
    status, out, err = midigenre(
        "train", *small, *more, "task=generate", f"name=generate-{name}", "trainer.max_epochs=2",
        "data.phrase_bars=4", "optim.lr=0.003", "trainer.log_every_n_steps=1",
    )  # fmt: skip
    assert status == 0, err
    folder = home / out.strip().splitlines()[-1]
    scores = json.loads((folder / "evaluation.json").read_text())["tokens"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert scores["n_notes"] > 0
    low, high = scores["ci95"]["nats_per_note"]
    assert low <= scores["nats_per_note"] <= high
    assert scores["nats_per_note"] == pytest.approx(
        scores["loss"] * scores["n_steps"] / scores["n_notes"]
    )
    assert 0 < scores["accuracy"] < 1
    assert metrics["best"]["val/loss"] == pytest.approx(metrics["val"]["val/loss"], rel=0.2)
    assert metrics["test"]["test/loss"] == scores["loss"]
    content = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert content[CHECKPOINT_KEY]["task"]["name"] == "generate"
    assert content[CHECKPOINT_KEY]["data"]["marks"] is True
    events = EventAccumulator(str(folder))
    events.Reload()
    shown = set(events.Tags()["scalars"])
    assert {"train/loss", "compare/val/loss", "compare/val/nats_per_note",
            "trained/test_nats_per_note"} <= shown  # fmt: skip
    losses = [event.value for event in events.Scalars("compare/val/loss")]
    assert losses[-1] < losses[0]


def test_a_generator_is_no_classifier(midigenre, home):
    status, out, err = midigenre(
        "train", *SMALL, "task=generate", "name=generate-other", "trainer.max_steps=2",
        "data.phrase_bars=2",
    )  # fmt: skip
    assert status == 0, err
    run = out.strip().splitlines()[-1]
    song = next((home / "corpora").glob("toy-*/*/*.mid"))
    status, _, err = midigenre("predict", f"run={run}", "--", str(song))
    assert status == 2
    assert "is a generator (task=generate), and this needs a classifier" in err
    status, _, err = midigenre("compare", "--", run)
    assert status == 2
    assert "nats per note" in err
    assert "none of the 1 runs is a classifier" in err


def test_a_sweep_of_generators_ends_well(midigenre, home):
    status, _, err = midigenre(
        "train", "-m", *SMALL, "task=generate", "name=generate-sweep", "trainer.max_steps=2",
        "data.phrase_bars=2", "seed=0,1",
    )  # fmt: skip
    assert status == 0, err
    assert err.count("finished:") == 2
    assert err.count("val/loss") >= 2
    assert "failed" not in err


def test_a_label_that_the_songs_lack_is_refused(midigenre):
    status, _, err = midigenre("train", *SMALL, "task=generate", "task.conditions=[mood]")
    assert status == 2
    assert "'mood'" in err
    assert "genre" in err
