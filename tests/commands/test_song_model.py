"""``task.song``: what is fitted after training is what ``evaluate`` and ``predict`` use."""

import csv
import json
import shutil

import numpy as np
import pytest
from toy_runs import SMALL, working_in

from midigenre.cli import main
from midigenre.evaluation.blend import Blends

RUN = ("train", *SMALL, "task=genre", "optim.lr=0.003", "trainer.max_epochs=1",
       "split.fractions=[0.4,0.3,0.3]")  # fmt: skip


def trained(home, kind):
    with working_in(home):
        assert main([*RUN, f"name={kind}", f"task.song={kind}"]) == 0
        (run,) = (home / "runs" / kind).iterdir()
    return run.relative_to(home)


@pytest.fixture(scope="module")
def blend(home):
    return trained(home, "blend")


def test_evaluation_tells_the_blend_from_the_encoder(blend, home):
    evaluation = json.loads((home / blend / "evaluation.json").read_text())
    for levels in evaluation.values():
        song = levels["song"]
        about = song["song_model"]
        assert about["kind"] == "blend"
        assert set(about["weights"]) == {"encoder", "hist_gb", "ngram_lr"} == set(about["scales"])
        assert sum(about["weights"].values()) == pytest.approx(1)
        assert about["note"] is None
        assert set(song["components"]) == {*about["weights"], "without_encoder"}
        assert set(about["without_encoder"]["weights"]) == {"hist_gb", "ngram_lr"}
        assert song["baselines"]["without_encoder"] == song["components"]["without_encoder"]
        assert "encoder" not in song["baselines"]
        assert song["components"]["hist_gb"] == song["baselines"]["hist_gb"]
        # An epoch teaches this encoder nothing; what is learnt comes from the baselines.
        assert song["components"]["encoder"]["accuracy"] < song["accuracy"]
        assert "song_model" not in levels["phrase"]


def test_evaluate_repeats_it_and_predict_says_the_same(midigenre, blend, home):
    run = blend
    status, out, err = midigenre("evaluate", f"run={run}")
    assert status == 0, err
    expected = json.loads((home / run / "evaluation.json").read_text())
    assert json.loads((home / out.strip()).read_text()) == expected
    assert "model (blend)" in err
    assert "encoder alone" in err
    paths = {}
    for manifest in home.glob("shards/toy-*/manifest.csv"):
        paths |= {row["song_id"]: row["path"] for row in csv.DictReader(manifest.open())}
    rows = list(csv.DictReader((home / run / "predictions_songs.csv").open()))
    files = [paths[row["song_id"]] for row in rows]
    status, out, err = midigenre("predict", f"run={run}", "calibrate=false", "--", *files)
    assert status == 0, err
    for row, answer in zip(rows, map(json.loads, out.splitlines()), strict=True):
        for label in ("genre",):
            assert answer[label] == row[f"{label}_model"]
            for name, probability in answer["probabilities"][label].items():
                stored = float(row[f"{label}_log_prob_{name}"])
                assert probability == pytest.approx(np.exp(stored), abs=2e-4)
    assert any(row["genre_model"] != row["genre_encoder"] for row in rows)


def test_another_corpus_has_the_stored_experts_for_baselines(midigenre, blend, home, tmp_path):
    copied = tmp_path / "alone"
    shutil.copytree(home / blend, copied)
    (copied / "config.yaml").unlink()  # its own songs are not known any more
    genres = ("rock", "swing")
    corpora = (home / "corpora").glob("toy-*")
    source = next(p for p in corpora if all((p / genre).is_dir() for genre in genres))
    for genre in genres:
        shutil.copytree(source / genre, tmp_path / "songs" / genre)
    status, out, err = midigenre(
        "evaluate", f"run={copied}", "corpus=folder", f"corpus.root={tmp_path / 'songs'}",
        "subset=all",
    )  # fmt: skip
    assert status == 0, err
    song = json.loads((home / out.strip()).read_text())["genre"]["song"]
    assert song["song_model"]["kind"] == "blend"
    assert song["accuracy"] > 0.8
    assert song["baselines"]["hist_gb"] == song["components"]["hist_gb"] is not None
    assert song["baselines"]["metadata"] is None


def test_other_weights_and_lost_files_are_told(midigenre, blend, home, tmp_path):
    file = next(p for p in (home / "corpora").rglob("*.mid"))
    alone = tmp_path / "alone.ckpt"
    shutil.copy(home / blend / "checkpoints" / "best.ckpt", alone)
    status, _, err = midigenre("predict", f"ckpt={alone}", "--", str(file))
    assert status == 0
    assert "task.song=blend" in err
    assert "is not there" in err
    copied = tmp_path / "run"
    shutil.copytree(home / blend, copied)
    stored = Blends.load(copied / "song")
    Blends(stored.classes, stored.blends, "other").save(copied / "song")
    status, _, err = midigenre("predict", f"run={copied}", "--", str(file))
    assert status == 0
    assert "belongs to its best checkpoint" in err
    (copied / "song" / "arrays.npz").write_bytes(b"no such thing")
    status, _, err = midigenre("predict", f"run={copied}", "--", str(file))
    assert status == 2
    assert "delete that folder" in err


def test_without_its_models_songs_are_not_calibrated(midigenre, blend, home, tmp_path):
    """Temperature and thresholds were fitted to the blend: they say nothing of the mean."""
    file = str(next(p for p in (home / "corpora").rglob("*.mid")))
    run = shutil.copytree(home / blend, tmp_path / "run")
    status, out, _ = midigenre("predict", f"run={run}", "--", file)
    assert (status, json.loads(out)["calibrated"]) == (0, True)
    shutil.rmtree(run / "song")
    status, out, _ = midigenre("predict", f"run={run}", "--", file)
    assert (status, json.loads(out)["calibrated"]) == (0, False)
    status, _, err = midigenre("predict", f"run={run}", "coverage=0.9", "--", file)
    assert status == 2
    assert "coverage=0.9" in err
    status, _, err = midigenre("evaluate", f"run={run}")
    assert status == 0
    assert "fitting the calibration on the run's validation songs" in err


def test_the_mean_leaves_nothing_and_a_typo_is_refused(midigenre, toy_run, home):
    assert not (home / toy_run / "song").exists()
    evaluation = json.loads((home / toy_run / "evaluation.json").read_text())
    assert "song_model" not in evaluation["genre"]["song"]
    assert "components" not in evaluation["genre"]["song"]
    status, _, err = midigenre("train", *SMALL, "task.song=median")
    assert status == 2
    assert "mean, blend" in err


@pytest.mark.slow
def test_a_protocol_pools_the_blends_of_its_parts(home):
    with working_in(home):
        status = main(["train", *SMALL, "corpus.n_songs=32", "task=genre", "task.song=blend",
                       "trainer.max_epochs=1", "protocol=crossval", "protocol.folds=2",
                       "name=folds"])  # fmt: skip
        assert status == 0
        (run,) = (home / "runs" / "folds").iterdir()
    song = json.loads((run / "evaluation.json").read_text())["genre"]["song"]
    parts = [
        json.loads((run / name / "evaluation.json").read_text())["genre"]["song"]
        for name in ("fold-1-of-2", "fold-2-of-2")
    ]
    assert [part["song_model"] for part in parts] == song["song_model"]["parts"]
    for name in ("encoder", "hist_gb", "ngram_lr", "without_encoder"):
        right = [part["components"][name]["accuracy"] * part["n"] for part in parts]
        assert song["components"][name]["accuracy"] == pytest.approx(sum(right) / song["n"])
    right = [part["accuracy"] * part["n"] for part in parts]
    assert song["accuracy"] == pytest.approx(sum(right) / song["n"])
    assert "encoder" not in song["baselines"]
