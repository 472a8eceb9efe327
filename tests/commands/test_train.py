"""``train``: what a run leaves, the same twice, resumed as if never stopped."""

import json
import re

import pytest
import torch
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from boards import Board

SMALL = ("corpus=toy", "corpus.n_songs=48", "model.d_model=32", "model.n_heads=2",
         "model.n_layers=1", "model.d_ff=32", "data.batch_phrases=16")  # fmt: skip


def only(folder):
    (found,) = folder.iterdir()
    return found


def read(path):
    return json.loads(path.read_text())


def test_a_run_explains_itself(toy_run, home):
    run = home / toy_run
    config = OmegaConf.load(run / "config.yaml")
    assert config.task.name == "genre_emotion"
    assert config.optim.lr == 0.006
    spec = read(run / "spec.json")
    assert spec["labels"]["genre"] == ["waltz", "rock", "ballad", "swing"]
    assert len(spec["tokens"]["fields"][0]["tokens"]) > 600
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    log = (run / "train.log").read_text()
    assert "parameters" in log
    assert len(re.findall(r"INFO epoch [1-6]: train/loss \d.*, val/macro_f1 \d", log)) == 6
    metrics = read(run / "metrics.json")
    assert metrics["best"]["val/macro_f1"] > 0.5
    assert metrics["epochs"] == 6


def test_evaluation_json_keeps_its_contract(toy_run, home):
    evaluation = read(home / toy_run / "evaluation.json")
    assert set(evaluation) == {"genre", "emotion"}
    for levels in evaluation.values():
        for level in ("phrase", "song"):
            scores = levels[level]
            assert {"n", "accuracy", "macro_f1", "ci95", "per_class", "confusion", "labels", "ece",
                    "baselines"} <= set(scores)  # fmt: skip
            assert set(scores["baselines"]) >= {"majority", "metadata", "ngram_lr", "hist_gb"}
            assert sum(map(sum, scores["confusion"])) == scores["n"]
            low, high = scores["ci95"]["macro_f1"]
            assert low <= scores["macro_f1"] <= high
    assert evaluation["genre"]["phrase"]["n"] > evaluation["genre"]["song"]["n"] >= 4
    # The toy's genres follow from rules that a small model finds at once.
    assert evaluation["genre"]["song"]["accuracy"] > 0.9


def test_tensorboard_shows_what_a_person_asks_for(toy_run, home):
    events = EventAccumulator(str(home / toy_run), {"images": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    scalars = set(tags["scalars"])
    assert scalars >= {
        "train/loss", "train/lr", "train/grad_norm", "train/tokens_per_second",
        "compare/val/loss", "compare/val/macro_f1", "val/genre/macro_f1", "val/emotion/macro_f1",
        "val/genre/loss", "trained/test_song_macro_f1",
    }  # fmt: skip
    assert set(tags["images"]) >= {
        "val/genre/confusion", "val/emotion/confusion", "trained/test/genre/phrase/confusion",
    }  # fmt: skip
    assert "val/phrases/text_summary" in tags["tensors"]
    text = events.Tensors("val/phrases/text_summary")[-1].tensor_proto.string_val[0].decode()
    rows = [line for line in text.splitlines() if ", bar " in line]
    assert 1 <= len(rows) <= 8
    assert "predicted emotion" in text
    rates = [e.value for e in events.Scalars("train/lr")]
    assert max(rates) == pytest.approx(0.006, rel=0.05)
    assert rates[-1] < rates[len(rates) // 3]


def test_tensorboard_leads_with_what_is_compared_and_draws_no_dots(toy_run, home):
    board = Board(home / "runs")
    run = str(toy_run.relative_to("runs"))  # the run's folder, with nothing behind it
    assert run in board.tags["scalars"]
    scalars = board.tags["scalars"][run]
    # Sorted as TensorBoard sorts them; it opens the first two groups.
    groups = list(dict.fromkeys(tag.partition("/")[0] for tag in sorted(scalars)))
    assert groups == ["compare", "train", "trained", "val"]
    assert [tag for tag in sorted(scalars) if tag.startswith("compare/")] == [
        "compare/val/loss", "compare/val/macro_f1",
    ]  # fmt: skip
    assert {tag: n for tag, n in scalars.items() if n < 2} == {}
    for plugin in ("images", "text"):
        first = min(board.tags[plugin][run])
        assert first > "train/~"
    kinds = [set(board.tags[plugin].get(run, ())) for plugin in board.tags]
    assert sum(map(len, kinds)) == len(set.union(*kinds))
    assert not (home / toy_run / "hparams.yaml").exists()  # config.yaml has them


@pytest.mark.parametrize("tokenizer", ["cp", "octuple", "midilike291", "mumidi"])
def test_another_tokenizer_is_one_override(tokenizer, midigenre):
    status, out, err = midigenre(
        "train", *SMALL, f"tokenizer={tokenizer}", "trainer.max_epochs=1", "optim.lr=0.003"
    )
    assert status == 0, err
    assert f"toy-{tokenizer}-tiny-genre" in out


def test_a_seed_gives_the_same_metrics_twice(midigenre, home):
    for name in ("seed-once", "seed-twice"):
        assert midigenre("train", *SMALL, f"name={name}", "trainer.max_epochs=2", "seed=3")[0] == 0
    once, twice = (only(home / "runs" / name) for name in ("seed-once", "seed-twice"))
    for file in ("metrics.json", "evaluation.json"):
        assert (once / file).read_text() == (twice / file).read_text()
    assert midigenre("train", *SMALL, "name=seed-other", "trainer.max_epochs=2", "seed=4")[0] == 0
    other = only(home / "runs" / "seed-other")
    assert read(other / "metrics.json")["val"] != read(once / "metrics.json")["val"]


@pytest.mark.slow
def test_resumed_equals_uninterrupted(midigenre, home):
    steady = ("optim.schedule=constant", "optim.warmup_steps=3")  # the same for any length
    assert midigenre("train", *SMALL, *steady, "name=whole", "trainer.max_epochs=4")[0] == 0
    assert midigenre("train", *SMALL, *steady, "name=parts", "trainer.max_epochs=2")[0] == 0
    whole, parts = (only(home / "runs" / name) for name in ("whole", "parts"))
    status, _, err = midigenre("train", f"resume={parts}", "trainer.max_epochs=4")
    assert status == 0, err
    assert only(home / "runs" / "parts") == parts  # the same folder
    weights = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (whole, parts)
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert read(whole / "metrics.json") == read(parts / "metrics.json")


def test_resume_lets_only_the_bounds_change(midigenre, home, toy_run):
    status, _, err = midigenre("train", f"resume={home / toy_run}", "seed=9")
    assert status == 2
    assert "seed=9" in err
    assert "trainer.max_*" in err


def test_a_finished_run_is_left_as_it_is_unless_its_limit_is_raised(midigenre, home):
    early = ("name=early", "trainer.max_epochs=9", "callbacks.early_stopping.patience=1",
             "+callbacks.early_stopping.min_delta=2")  # fmt: skip
    status, out, err = midigenre("train", *SMALL, *early)
    assert status == 0, err
    assert err.count("shards/toy-") == 1
    assert "train/loss" not in err
    run = home / out.strip()
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert read(run / "metrics.json")["tested"] == {
        "epoch": best["epoch"] + 1, "step": best["global_step"],
    }  # fmt: skip
    said = f"trained 2 epochs (stopped early), {last_step(run)} steps, tested epoch"
    assert f"{said} {best['epoch'] + 1}'s checkpoint; " in err
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    status, out, err = midigenre("train", f"resume={run}")
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert f"{run} is finished" in err
    assert "trainer.max_epochs=9; to train on, give a higher trainer.max_epochs" in err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert midigenre("train", f"resume={run}", "trainer.max_epochs=10")[0] == 0
    assert read(run / "metrics.json")["epochs"] == 3


def last_step(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]


@pytest.mark.slow
def test_a_sweep_leaves_a_folder_for_each_job(midigenre, home):
    sweeps = home / "runs" / "sweep"  # where other tests may have left theirs
    before = set(sweeps.glob("*"))
    status, _, err = midigenre(
        "train", "-m", *SMALL, "trainer.max_epochs=1", "tokenizer=remi,octuple"
    )
    assert status == 0, err
    (folder,) = set(sweeps.glob("*")) - before
    jobs = sorted(p.name for p in folder.iterdir() if p.is_dir())
    assert [job.split("-")[0] for job in jobs] == ["0", "1"]
    assert "tokenizer=remi" in jobs[0]
    assert "tokenizer=octuple" in jobs[1]
    for job in jobs:
        assert (folder / job / "evaluation.json").is_file()


def test_resuming_an_empty_folder_leaves_it_there_and_empty(midigenre, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    assert midigenre("train", f"resume={folder}")[0] == 2
    assert folder.is_dir()
    assert list(folder.iterdir()) == []


def test_a_refused_run_leaves_no_folder(midigenre, home):
    before = set((home / "runs").rglob("*"))
    for mistake in ("optim.lr=abc", "data.batch_phrases=0", "seed=-1"):
        assert midigenre("train", "corpus=toy", mistake, "name=refused")[0] == 2
    assert midigenre("train", "resume=runs/nothing")[0] == 2
    assert set((home / "runs").rglob("*")) == before


def test_training_shards_of_another_tokenizer_is_refused(midigenre):
    assert midigenre("prepare", "corpus=toy", "corpus.n_songs=48", "tokenizer=cp")[0] == 0
    _, out, _ = midigenre("prepare", "corpus=toy", "corpus.n_songs=48", "tokenizer=cp")
    status, _, err = midigenre("train", *SMALL, f"shards={out.strip()}")
    assert status == 2
    assert err.count("\n") == 1
    assert all(word in err for word in ("'cp'", "'remi'", "midigenre prepare", "tokenizer=cp"))
    status, _, err = midigenre(
        "train", *SMALL, f"shards={out.strip()}", "tokenizer=cp", "trainer.max_epochs=1"
    )
    assert status == 0, err


def test_half_precision_profiler_and_cost(midigenre, home):
    settings = ("precision=bf16", "profiler=simple", "trainer.max_epochs=1", "name=bfloat16")
    assert midigenre("train", *SMALL, *settings)[0] == 0
    run = only(home / "runs" / "bfloat16")
    assert "optimizer_step" in (run / "fit-profile.txt").read_text()
    cost = read(run / "cost.json")
    assert cost["train_tokens"] > 1000
    assert cost["seconds"] >= cost["fit_seconds"] > 0
    assert cost["parameters"] == read(run / "metrics.json")["parameters"]
    weights = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {w.dtype for w in weights.values() if w.is_floating_point()} == {torch.float32}


def test_training_ends_in_time(midigenre, home):
    limit = ("trainer.max_epochs=1000", "trainer.max_time=00:00:00:03", "name=timed")
    status, _, err = midigenre("train", *SMALL, *limit)
    assert status == 0, err
    run = only(home / "runs" / "timed")
    assert read(run / "cost.json")["fit_seconds"] < 30
    assert 0 < read(run / "metrics.json")["epochs"] < 1000
