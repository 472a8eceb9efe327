"""``train`` with what makes the most of few labels: fine-tuning, probes, averages, a time box."""

import csv
import json
import shutil
import signal

import pytest
import torch
from toy_runs import SMALL

from midigenre.data.datamodule import PhraseDataModule
from midigenre.trained import load_run

EVERYTHING = ("callbacks.average.decay=0.9", "task.mlm_weight=0.3")
SPY = "+callbacks.signal._target_=spies.SignalAt"
TOY = ("corpus=toy", "corpus.n_songs=48", "data.batch_phrases=8", "logger=csv")


def saved(run, name="last"):
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def rows(run):
    with (run / "csv" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_probe_moves_nothing_but_one_layer(toy_run, home, midigenre, monkeypatch):
    status, out, err = midigenre(
        "train", "experiment=probe", f"init_from={toy_run}", "task=genre_emotion", *TOY,
        "trainer.max_epochs=2",
    )  # fmt: skip
    assert status == 0, err
    run = home / out.strip()
    source, probe = saved(home / toy_run, "best")["state_dict"], saved(run)["state_dict"]
    shared = [k for k in source if k.startswith(("model.embedding.", "model.backbone."))]
    assert shared
    assert all(torch.equal(probe[k], source[k]) for k in shared)
    heads = {k for k in probe if k.startswith("model.heads.")}
    assert "model.heads.0.out.weight" in heads
    assert not any(".hidden." in k for k in heads)
    moments = saved(run)["optimizer_states"][0]["state"]
    moved = [k for k in probe if not k.startswith(("model.embedding.", "model.backbone."))]
    assert len(moments) == len([k for k in moved if not k.endswith("weight_C")])
    # A run that was stopped and goes on keeps its backbone.
    status, _, err = midigenre("train", f"resume={run.relative_to(home)}", "trainer.max_epochs=3")
    assert status == 0, err
    assert all(torch.equal(saved(run)["state_dict"][k], source[k]) for k in shared)
    assert load_run(str(run)).classifier.label_heads()["genre"].hidden is None


def test_fine_tuning_takes_model_and_tokenizer_of_the_run(toy_run, home, midigenre):
    status, out, err = midigenre(
        "train", "experiment=finetune", f"init_from={toy_run}", *TOY, "model.dropout=0.25",
        "freeze_layers=1", "trainer.max_epochs=1",
    )  # fmt: skip
    assert status == 0, err
    assert "started from" in err
    about = saved(home / out.strip())["midigenre"]
    theirs = saved(home / toy_run)["midigenre"]
    assert about["model"] == {**theirs["model"], "dropout": 0.25}
    assert about["tokens"] == theirs["tokens"]
    found, source = saved(home / out.strip())["state_dict"], saved(home / toy_run, "best")
    for name, value in source["state_dict"].items():
        if name.startswith(("model.embedding.", "model.backbone.layers.0.")):
            assert torch.equal(found[name], value), name
    norm = "model.backbone.final_norm.weight"
    assert not torch.equal(found[norm], source["state_dict"][norm])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("experiment=finetune",), "init_model=true needs the weights of a trained model"),
        (
            ("optim.layer_decay=0.75",),
            "optim.layer_decay=0.75 needs the weights of a trained model",
        ),
        (("freeze_layers=all",), "freeze_layers=all needs the weights of a trained model"),
        (("init_model=true",), "init_model=true needs the weights of a trained model"),
        (("experiment=finetune", "init_from=RUN", "freeze_layers=7"), "freeze_layers=7: give all"),
        (("experiment=finetune", "init_from=RUN", "model=small"), "has another backbone"),
        (("experiment=finetune", "init_from=RUN", "tokenizer=cp"), "set tokenizer=remi"),
        (("experiment=finetune", "init_from=ALONE"), "add init_model=false model=X tokenizer=Y"),
        (("experiment=finetune", "init_from=nowhere"), "init_from=nowhere: no such folder"),
        (("task.head=none",), "task.head"),
        (("freeze_layers=some", "init_from=RUN"), "freeze_layers=some: give all"),
        (("callbacks.average.decay=2",), "decay must lie between 0 and 1"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(given, message, toy_run, home, midigenre):
    alone = home / "one checkpoint" / "there" / "best.ckpt"
    if not alone.exists():
        alone.parent.mkdir(parents=True)
        shutil.copy(home / toy_run / "checkpoints" / "best.ckpt", alone)
    runs = set((home / "runs").glob("*/*"))
    given = [g.replace("RUN", str(toy_run)).replace("ALONE", str(alone)) for g in given]
    status, _, err = midigenre("train", *given, "corpus=toy")
    assert status == 2
    assert message in err.replace("\n", " "), err
    assert set((home / "runs").glob("*/*")) == runs


@pytest.mark.slow
def test_everything_at_once_goes_on_exactly(home, midigenre, monkeypatch):
    """Stopped within an epoch: the average and every draw are as uninterrupted."""
    settings = (
        *SMALL,
        *EVERYTHING,
        "trainer.max_epochs=3",
        "+callbacks.signal._target_=spies.SignalAt",
    )
    status, out, err = midigenre("train", *settings, "name=whole-options", "logger=csv")
    assert status == 0, err
    whole = home / out.strip()
    monkeypatch.setenv("SIGNAL_AT", f"{signal.SIGTERM.value}:13")
    status, _, err = midigenre("train", *settings, "name=parts-options")
    assert status == 143, err
    monkeypatch.delenv("SIGNAL_AT")
    (parts,) = (home / "runs" / "parts-options").iterdir()
    status, _, err = midigenre("train", f"resume={parts.relative_to(home)}")
    assert status == 0, err
    one, other = saved(whole), saved(parts)
    for state in ("state_dict", "current_model_state"):
        for name, value in one[state].items():
            assert torch.equal(value, other[state][name]), name
    assert int(one["averaging_state"]["n_averaged"]) == one["global_step"]
    weight = "model.heads.0.out.weight"
    assert not torch.equal(one["state_dict"][weight], one["current_model_state"][weight])
    for file in ("metrics.json", "evaluation.json"):
        assert (whole / file).read_text() == (parts / file).read_text()
    logged = rows(whole)
    assert any(row.get("train/mlm_loss") for row in logged)


def test_the_best_checkpoint_is_what_was_validated(home, midigenre, monkeypatch):
    """The average: its own loss on the validation songs is the logged one of some epoch."""
    status, out, err = midigenre(
        "train", *SMALL, "callbacks.average.decay=0.95", "trainer.max_epochs=2", "logger=csv",
        "name=averaged", "optim.lr=0.01", "callbacks.checkpoint.monitor=val/loss",
        "callbacks.checkpoint.mode=min",
    )  # fmt: skip
    assert status == 0, err
    run = home / out.strip()
    (best,) = json.loads((run / "metrics.json").read_text())["best"].values()
    held = saved(run, "best")
    shards = json.loads((run / "spec.json").read_text())["shards"]
    model = load_run(str(run)).classifier
    data = PhraseDataModule(home / shards, phrase_bars=4, max_tokens=1024, batch_phrases=16)
    data.setup("validate")

    def val_loss():
        with torch.no_grad():
            return sum(float(model.loss(model(batch), batch)[0]) for batch in data.val_dataloader())

    assert val_loss() == pytest.approx(best, rel=1e-5)
    now = {k.removeprefix("model."): v for k, v in held["current_model_state"].items()}
    model.load_state_dict({k: v for k, v in now.items() if k in model.state_dict()})
    assert val_loss() != pytest.approx(best, rel=1e-3)
    assert held["global_step"] > 0


def test_a_time_box_ends_with_a_low_rate_and_a_validation(home, midigenre):
    """Of a million epochs a few are made; the rate is at its end, and the end was validated."""
    status, out, err = midigenre(
        "train", *SMALL, "trainer.max_epochs=1000000", "trainer.max_time=00:00:00:04",
        "trainer.check_val_every_n_epoch=1000", "trainer.log_every_n_steps=1", "logger=csv",
        "name=boxed", "optim.lr=0.001",
    )  # fmt: skip
    assert status == 0, err
    run = home / out.strip()
    steps = json.loads((run / "metrics.json").read_text())["steps"]
    logged = rows(run)
    rates = [float(row["train/lr"]) for row in logged if row.get("train/lr")]
    assert len(rates) == steps > 10
    assert max(rates) == pytest.approx(0.001, rel=0.1)
    assert rates[0] < 0.2 * max(rates)
    assert rates[-1] < 0.1 * max(rates)
    validated = [int(row["step"]) for row in logged if row.get("val/loss")]
    assert validated == [steps - 1]
    assert saved(run, "best")["global_step"] == steps == saved(run)["global_step"]
    # With more time it goes on, with the rate of the longer box.
    status, _, err = midigenre(
        "train", f"resume={run.relative_to(home)}", "trainer.max_time=00:00:00:08"
    )
    assert status == 0, err
    more = [float(row["train/lr"]) for row in rows(run) if row.get("train/lr")][steps:]
    assert max(more) > 3 * rates[-1]
    assert more[-1] < 0.1 * max(rates)


@pytest.mark.slow
def test_the_recipe_runs_with_and_without_pretraining(home, midigenre):
    box = ("model.d_model=32", "model.n_layers=1", "trainer.max_time=00:00:00:02", *TOY)
    status, out, err = midigenre("train", "experiment=mlm_best", *box)
    assert status == 0, err
    kept = set()
    for start in ((), (f"init_from={out.strip()}",)):
        status, found, err = midigenre("train", "experiment=genre_best", *box, *start)
        assert status == 0, err
        run = home / found.strip()
        scores = json.loads((run / "evaluation.json").read_text())["genre"]["song"]
        assert set(scores["components"]) == {"encoder", "hist_gb", "ngram_lr", "without_encoder"}
        assert all(scores["baselines"].values())
        now = set((home / "shards").glob("toy-octuple-*/baselines/*.npz"))
        assert now == kept or not start, "the second run fitted its baselines anew"
        kept = now


def test_the_clock_alone_may_end_a_run(home, midigenre):
    status, _, err = midigenre(
        "train", *SMALL, "trainer.max_epochs=-1", "trainer.max_time=00:00:00:02", "name=endless"
    )
    assert status == 0, err
    assert "/-2" not in err, "the bar names a last epoch"
    assert "left: 0:00:0" in err
    status, _, err = midigenre("train", *SMALL, "trainer.max_epochs=-1", "name=no-end")
    assert status == 2
    assert "set trainer.max_steps, max_epochs or max_time" in err.replace("\n", " ")
