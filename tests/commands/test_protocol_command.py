"""``train protocol=...``: parts are runs of their own, and one evaluation is over all of them."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from toy_runs import SMALL, working_in

from boards import Board
from midigenre.cli import main
from midigenre.evaluation.compare import find_runs
from midigenre.evaluation.metrics import Counts, confusion_matrix, scores_of
from midigenre.trained import load_run

SETTINGS = (*SMALL, "corpus.n_songs=32", "trainer.max_epochs=1", "data.batch_phrases=8",
            "+callbacks.signal._target_=spies.SignalAt")  # fmt: skip
CROSSVAL = (*SETTINGS, "protocol=crossval", "protocol.folds=2")
FILES = ("evaluation.json", "metrics.json", "predictions.csv", "predictions_songs.csv")


def only(folder):
    (found,) = folder.iterdir()
    return found


def read(path):
    return json.loads(path.read_text())


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same(one, other, files=FILES):
    for name in files:
        assert (one / name).read_text() == (other / name).read_text(), name


@pytest.fixture(scope="session")
def crossval(home):
    """Two folds of the toy songs, trained in turn. Read only."""
    with working_in(home):
        assert main(["train", *CROSSVAL, "name=crossval"]) == 0
        return only(home / "runs" / "crossval")


def test_every_song_is_tested_once_by_a_model_that_has_not_seen_it(crossval):
    songs = table(crossval / "predictions_songs.csv")
    assert len({row["song_id"] for row in songs}) == len(songs) == 32
    by_part = {name: {r["song_id"] for r in songs if r["part"] == name}
               for name in ("fold-1-of-2", "fold-2-of-2")}  # fmt: skip
    for name, ids in by_part.items():
        run = load_run(str(crossval / name))
        assert run.data["protocol"]["part"] == int(name[5])
        assert {r["song_id"] for r in table(crossval / name / "predictions_songs.csv")} == ids
        about = read(crossval / name / "metrics.json")["protocol"]
        assert sum(about["songs"].values()) == 32
        assert about["songs"]["test"] == len(ids)


def test_the_evaluation_is_of_all_predictions_together(crossval):
    evaluation = read(crossval / "evaluation.json")
    parts = [read(crossval / f"fold-{k}-of-2" / "evaluation.json") for k in (1, 2)]
    for level, file in (("phrase", "predictions.csv"), ("song", "predictions_songs.csv")):
        found, rows = evaluation["genre"][level], table(crossval / file)
        assert found["n"] == len(rows) == sum(part["genre"][level]["n"] for part in parts)
        code = {name: i for i, name in enumerate(found["labels"])}
        truth, guess, baseline = (
            np.array([code[row[column]] for row in rows])
            for column in ("genre", "genre_model", "genre_ngram_lr")
        )
        assert found["confusion"] == confusion_matrix(truth, guess, len(code)).tolist()
        for scores, predicted in ((found, guess), (found["baselines"]["ngram_lr"], baseline)):
            for name, value in scores_of(Counts.of_rows(truth, predicted, len(code))).items():
                assert scores[name] == pytest.approx(value)
        own = [part["genre"][level]["macro_f1"] for part in parts]
        assert [part["macro_f1"] for part in found["parts"]] == own
        assert found["over_parts"]["macro_f1"]["mean"] == pytest.approx(np.mean(own))
        assert found["over_parts"]["macro_f1"]["sd"] == pytest.approx(np.std(own, ddof=1))
        assert found["calibrated"] is not None
    metrics, cost = read(crossval / "metrics.json"), read(crossval / "cost.json")
    assert metrics["test"]["test/genre/song/macro_f1"] == evaluation["genre"]["song"]["macro_f1"]
    costs = [read(crossval / f"fold-{k}-of-2" / "cost.json") for k in (1, 2)]
    assert cost["train_tokens"] == sum(of["train_tokens"] for of in costs)


def test_compare_and_evaluate_read_it(crossval, home, midigenre):
    runs, unfinished = find_runs([crossval.parent])
    assert [run.folder for run in runs] == [crossval]
    assert not unfinished
    assert runs[0].settings["protocol"] == "crossval"
    status, out, err = midigenre("evaluate", f"run={crossval / 'fold-2-of-2'}")
    assert status == 0, err
    again, then = read(Path(out.strip())), read(crossval / "fold-2-of-2" / "evaluation.json")
    for level in ("phrase", "song"):
        assert again["genre"][level]["confusion"] == then["genre"][level]["confusion"]
        assert again["genre"][level]["baselines"] == then["genre"][level]["baselines"]
    status, _, err = midigenre("evaluate", f"run={crossval}")
    assert status == 2
    assert "fold-1-of-2" in err


@pytest.mark.slow
def test_a_part_alone_is_the_same_as_in_turn(crossval, home, midigenre):
    status, out, err = midigenre("train", *CROSSVAL, "protocol.part=2", "name=alone")
    assert status == 0, err
    run, part = Path(out.strip()), crossval / "fold-2-of-2"
    assert_same(run, part)
    weights = [torch.load(r / "checkpoints" / "last.ckpt")["state_dict"] for r in (run, part)]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    # Its songs come back from the checkpoint.
    status, _, err = midigenre("train", f"resume={run}", "trainer.max_epochs=2")
    assert status == 0, err
    assert [r["song_id"] for r in table(run / "predictions_songs.csv")] == [
        r["song_id"] for r in table(part / "predictions_songs.csv")
    ]


def test_stopped_inside_two_parts_it_ends_as_if_it_had_not_been(
    crossval, home, midigenre, monkeypatch
):
    monkeypatch.setenv("SIGNAL_AT", f"{signal.SIGTERM.value}:2")
    status, _, err = midigenre("train", *CROSSVAL, "name=stopped")
    run = only(home / "runs" / "stopped")
    said = f"resume with: midigenre train resume={run.relative_to(home)}"
    assert (status, err.strip().splitlines()[-1].endswith(said)) == (143, True), err
    assert not (run / "fold-1-of-2" / "evaluation.json").exists()
    # Goes on after that batch of the first part, and is stopped in the second.
    status, _, err = midigenre("train", f"resume={run.relative_to(home)}")
    assert status == 143, err
    assert (run / "fold-1-of-2" / "evaluation.json").exists()
    assert not (run / "evaluation.json").exists()
    finished = (run / "fold-1-of-2" / "evaluation.json").stat().st_mtime_ns
    monkeypatch.delenv("SIGNAL_AT")
    status, _, err = midigenre("train", f"resume={run.relative_to(home)}", "trainer.max_epochs=2")
    assert status == 2
    assert "trainer.max_epochs=2" in err
    assert "finished with 1" in err
    status, out, err = midigenre("train", f"resume={run.relative_to(home)}")
    assert (status, out.strip()) == (0, str(run.relative_to(home))), err
    assert (run / "fold-1-of-2" / "evaluation.json").stat().st_mtime_ns == finished
    assert_same(run, crossval)
    for part in ("fold-1-of-2", "fold-2-of-2"):
        assert_same(run / part, crossval / part)


@pytest.mark.slow
def test_stopped_between_parts(crossval, home, midigenre):
    run = home / "runs" / "between" / "one"
    shutil.copytree(crossval, run)
    shutil.rmtree(run / "fold-2-of-2")
    for name in (*FILES, "cost.json"):
        (run / name).unlink()
    assert midigenre("train", f"resume={run.relative_to(home)}")[0] == 0
    assert_same(run, crossval)


@pytest.fixture(scope="session")
def sources(crossval, home):
    """A table of the toy songs as if from three collections; only one of them has the waltzes."""
    shards = Path(read(crossval / "spec.json")["shards"])
    rows = table(home / shards / "manifest.csv")
    path = home / "sources.csv"
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["path", "song_id", "genre", "emotion", "source"])
        for i, row in enumerate(rows):
            source = "w" if row["genre"] == "waltz" else "one" if i % 2 else "two"
            where = home / row["path"]
            out.writerow([where, row["song_id"], row["genre"], row["emotion"], source])
    return path


def test_a_source_left_out_in_turn(sources, home, midigenre):
    settings = [s for s in SETTINGS if not s.startswith("corpus")]
    status, out, err = midigenre(
        "train", *settings, "corpus=manifest", f"corpus.path={sources}",
        "protocol=leave_one_source_out", "name=sources",
    )  # fmt: skip
    assert status == 0, err
    run = home / out.strip()
    assert "8 songs cannot be tested, since no other source has their genre (waltz 8)" in err
    assert {p.name for p in run.glob("source-*")} == {"source-one", "source-two"}
    song = read(run / "evaluation.json")["genre"]["song"]
    assert song["n"] == 24
    assert song["untestable"] == {"source-w": {"waltz": 8}}
    for row in table(run / "predictions_songs.csv"):
        assert row["part"] == f"source-{row['source']}"
    (skipped,) = read(run / "metrics.json")["protocol"]["skipped"]
    assert skipped["name"] == "source-w"


def test_a_part_without_a_labelled_training_song_is_refused_before_any_is_trained(
    sources, home, midigenre, tmp_path
):
    """Only the songs of one source have an emotion: without it there is nothing to learn from."""
    table_path = tmp_path / "one_has_emotions.csv"
    with table_path.open("w", newline="") as file:
        out = csv.DictWriter(file, ["path", "song_id", "genre", "emotion", "source"])
        out.writeheader()
        for row in table(sources):
            emotion = row["emotion"] if row["source"] == "two" else "none"
            out.writerow({**row, "emotion": emotion})
    settings = [s for s in SETTINGS if not s.startswith("corpus")]
    status, out, err = midigenre(
        "train", *settings, "corpus=manifest", f"corpus.path={table_path}", "task=genre_emotion",
        "labels.map.emotion.none=", "protocol=leave_one_source_out", "name=no-emotion",
    )  # fmt: skip
    assert (status, out) == (2, ""), err
    assert "(source-two) has no training song labelled with emotion" in " ".join(err.split())
    assert not (home / "runs" / "no-emotion").exists()


def test_what_cannot_be_is_one_line_and_leaves_nothing(home, midigenre):
    for given, words in (
        (("protocol=leave_one_source_out",), ["come from 'toy'", "column `source`"]),
        (("protocol=crossval", "protocol.folds=1"), ["protocol.folds=1"]),
        (("protocol=crossval", "trainer.devices=2"), ["trainer.devices=2", "protocol.part"]),
        (("protocol.part=1",), ["protocol.part=1", "no parts"]),
        (("protocol.folds=3",), ["protocol.folds"]),
    ):
        status, out, err = midigenre("train", *SMALL, *given, "name=refused")
        assert (status, out) == (2, ""), given
        assert all(word in err.splitlines()[-1] for word in words), err
        assert not (home / "runs" / "refused").exists()


def test_a_part_that_cannot_go_on_is_named(home, midigenre):
    status, _, err = midigenre("train", *CROSSVAL, "optim.lr=1e30", "name=diverged")
    assert status == 2
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("midigenre: part 1, fold-1-of-2: the loss is nan in step 2 at "), last


def test_a_part_starts_from_the_same_part(crossval, home, midigenre):
    source = crossval.relative_to(home)
    part = (*CROSSVAL, "protocol.part=2")
    status, out, err = midigenre("train", *part, f"init_from={source}", "name=started")
    assert status == 0, err
    assert "may have" not in err
    config = OmegaConf.load(home / out.strip() / "config.yaml")
    assert config.init_from == str(source / "fold-2-of-2")


@pytest.mark.slow
def test_a_start_that_was_dealt_otherwise_is_refused_or_told(crossval, home, midigenre):
    source = crossval.relative_to(home)
    for changed, word in (
        ("split.seed=1", "split.seed=0 there, 1 here"),
        ("protocol.folds=3", "protocol.folds=2 there, 3 here"),
        ("corpus.seed=1", "another corpus"),
    ):
        status, _, err = midigenre("train", *CROSSVAL, changed, f"init_from={source}", "name=leaky")
        assert status == 2
        assert word in err.splitlines()[-1]
        assert not (home / "runs" / "leaky").exists()
    # The part has been trained on what is tested here; another model ends the command early.
    status, _, err = midigenre(
        "train", *CROSSVAL, "protocol.part=1", f"init_from={source / 'fold-2-of-2'}",
        "model.n_layers=2", "name=warned",
    )  # fmt: skip
    assert (status, "n_layers" in err.splitlines()[-1]) == (2, True), err
    assert "is a classifier that was not trained by this part's songs alone" in " ".join(
        err.split()
    )


def test_a_generator_has_the_mean_over_its_parts(home, midigenre):
    status, out, err = midigenre("train", *CROSSVAL, "task=generate", "name=told")
    assert status == 0, err
    run = home / out.strip()
    tokens = read(run / "evaluation.json")["tokens"]
    own = [read(run / f"fold-{k}-of-2" / "evaluation.json")["tokens"] for k in (1, 2)]
    assert tokens["n_notes"] == sum(of["n_notes"] for of in own)
    assert tokens["nats_per_note"] == pytest.approx(np.mean([of["nats_per_note"] for of in own]))
    assert [part["nats_per_note"] for part in tokens["parts"]] == [
        of["nats_per_note"] for of in own
    ]
    low, high = tokens["ci95"]["nats_per_note"]
    assert 0 <= low < tokens["nats_per_note"] < high
    # Each part is a run of TensorBoard.
    assert set(Board(run).tags["scalars"]) == {"fold-1-of-2", "fold-2-of-2"}
