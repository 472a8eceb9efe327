"""Two processes over gloo train as one would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SMALL = ("corpus=toy", "corpus.n_songs=48", "model.d_model=32", "model.n_heads=2",
         "model.n_layers=1", "model.d_ff=32", "model.dropout=0", "task.head_dropout=0",
         "data.batch_phrases=8", "trainer.max_epochs=2")  # fmt: skip


@pytest.fixture(scope="module")
def two(home):
    """A run of two processes, and what each of them trained on."""
    batches = home / "batches"
    batches.mkdir()
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"PYTHONPATH": paths, "BATCHES_TO": str(batches)}
    environment.pop("MIDIGENRE_HOME", None)
    command = [sys.executable, "-m", "midigenre", "train", *SMALL, "trainer=ddp",
               "trainer.accelerator=cpu", "name='two processes'",
               "+callbacks.spy._target_=spies.WriteBatches"]  # fmt: skip
    found = subprocess.run(
        command, cwd=home, env=environment, capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, found.stderr
    (run,) = (home / "runs" / "two processes").iterdir()
    assert found.stdout.strip() == str(run.relative_to(home))  # said once
    assert "2 processes on cpu" in found.stderr
    trained = [
        [json.loads(line) for line in (batches / f"{rank}.jsonl").read_text().splitlines()]
        for rank in (0, 1)
    ]
    return run, trained


def test_ranks_step_together_over_different_phrases(two):
    _, trained = two
    steps = [[(b["epoch"], b["step"], b["batch"]) for b in rank] for rank in trained]
    assert steps[0] == steps[1]
    assert {epoch for epoch, _, _ in steps[0]} == {0, 1}
    for mine, theirs in zip(*trained, strict=True):
        assert mine["phrases"] != theirs["phrases"]


def test_no_phrase_twice_in_an_epoch(two, midigenre, home, monkeypatch):
    """The two share what one process sees, batch by batch."""
    alone = home / "alone"
    alone.mkdir()
    monkeypatch.setenv("BATCHES_TO", str(alone))
    # 17 batches: two processes leave the odd one out.
    same = ("trainer.accumulate_grad_batches=2", "trainer.limit_train_batches=16")
    spy = "+callbacks.spy._target_=spies.WriteBatches"
    assert midigenre("train", *SMALL, *same, spy, "name=one")[0] == 0
    single = [json.loads(line) for line in (alone / "0.jsonl").read_text().splitlines()]
    _, trained = two
    for epoch in (0, 1):
        whole = [b["phrases"] for b in single if b["epoch"] == epoch]
        parts = [[b["phrases"] for b in rank if b["epoch"] == epoch] for rank in trained]
        woven = [batch for pair in zip(*parts, strict=True) for batch in pair]
        assert woven == whole
        drawn = [tuple(phrase) for batch in woven for phrase in batch]
        assert len(drawn) == 16 * 8


def test_weights_and_scores_are_those_of_one_process(two, home):
    """Without dropout: gradients of two halves average to that of the whole step."""
    run, _ = two
    (one,) = (home / "runs" / "one").iterdir()
    weights = [
        torch.load(r / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for r in (run, one)
    ]
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=1e-3, atol=1e-4)
    ours, theirs = (json.loads((r / "metrics.json").read_text()) for r in (run, one))
    assert ours["steps"] == theirs["steps"]
    for key in ours["val"]:
        assert ours["val"][key] == pytest.approx(theirs["val"][key], abs=1e-3), key


def test_the_run_is_as_complete_as_any_other(two):
    run, _ = two
    names = {p.name for p in run.iterdir()}
    assert names >= {"config.yaml", "spec.json", "metrics.json", "evaluation.json", "cost.json"}
    assert (run / "checkpoints" / "best.ckpt").is_file()
    lines = (run / "train.log").read_text().splitlines()
    assert sum("parameters" in line for line in lines) == 1
