"""A split's scores, baselines and tables, on prepared toy songs."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))  # for toysongs.py

from toysongs import prepared

from midigenre.corpora.toy import Toy
from midigenre.data.datamodule import PhraseDataModule
from midigenre.evaluation.baselines import BASELINES, GONE
from midigenre.evaluation.blend import Blend, Blends, Pool
from midigenre.files import read_csv
from midigenre.models import LabelHead
from midigenre.spec import UNKNOWN
from midigenre.tasks.evaluate import OTHER_CLASSES, evaluate_split, fit_calibration

LEARNT = ("metadata", "ngram_lr", "hist_gb")


class Guess(torch.nn.Module):
    """A classifier that looks at nothing but a phrase's song and place."""

    def __init__(self, labels):
        super().__init__()
        self.heads = torch.nn.ModuleList(LabelHead(k, names, 4) for k, names in labels.items())

    def label_heads(self):
        return {head.label: head for head in self.heads}

    def encode(self, batch):
        place = (batch.song_B * 7 + batch.start_B).double()
        return place, place

    def logits(self, place):
        return {
            label: torch.stack([torch.sin(place * (c + 1)) for c in range(len(head.classes))], 1)
            for label, head in self.label_heads().items()
        }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    shards = prepared(Toy(n_songs=48), tmp_path_factory.mktemp("home"), "octuple")
    return PhraseDataModule(shards.folder, max_tokens=64)


@pytest.fixture(scope="module")
def model(data):
    return Guess(data.shards.labels.classes)


@pytest.fixture(scope="module")
def result(data, model, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "predictions.csv"
    found = evaluate_split(model, data, "test", train=data, predictions=path)
    return found, path


def test_every_baseline_beats_a_guess_at_both_levels(result, data):
    for levels in result[0].values():
        for level, scores in levels.items():
            assert tuple(scores["baselines"]) == tuple(BASELINES)
            assert "baselines_missing" not in scores
            n = len(data.rows("train") if level == "song" else data.phrases("train"))
            assert scores["baselines_train"] == {"n": n, "available": n}
    genre = result[0]["genre"]["phrase"]
    assert genre["baselines"]["ngram_lr"]["accuracy"] > genre["accuracy"] + 0.2
    assert genre["baselines"]["ngram_lr"]["versus_model"]["accuracy"]["ci95"][1] < 0
    assert genre["baselines"]["majority"]["accuracy"] < 0.5


def test_it_is_the_same_every_time(result, data, model, tmp_path):
    again = evaluate_split(model, data, "test", train=data, predictions=tmp_path / "p.csv")
    assert json.dumps(again) == json.dumps(result[0])
    assert (tmp_path / "p.csv").read_bytes() == result[1].read_bytes()


def test_tables_add_up(result, data):
    for level, path in (
        ("phrase", result[1]),
        ("song", result[1].with_name("predictions_songs.csv")),
    ):
        rows = read_csv(path)
        for label, levels in result[0].items():
            scores = levels[level]
            assert len(rows) == scores["n"]
            for who in ("model", *BASELINES):
                right = [row[label] == row[f"{label}_{who}"] for row in rows]
                expected = scores if who == "model" else scores["baselines"][who]
                assert np.mean(right) == pytest.approx(expected["accuracy"])
    phrases = data.phrases("test")
    ids = [data.shards.manifest[s]["song_id"] for s in phrases.song]
    rows = read_csv(result[1])
    assert [row["song_id"] for row in rows] == ids
    assert [int(row["first_bar"]) for row in rows] == phrases.first.tolist()
    assert [int(row["end_bar"]) for row in rows] == phrases.end.tolist()


def test_the_truth_of_the_test_songs_is_never_seen(result, data, model, tmp_path, monkeypatch):
    turned = dict(data.labels)
    test = data.rows("test")
    for label, classes in turned.items():
        turned[label] = classes.copy()
        turned[label][test] = (classes[test] + 1) % len(data.shards.labels.classes[label])
    other = PhraseDataModule(data.shards.folder, max_tokens=64)
    other.labels = turned
    evaluate_split(model, other, "test", train=other, predictions=tmp_path / "p.csv")
    for name in ("p.csv", "p_songs.csv"):
        before = read_csv(result[1].with_name(name.replace("p", "predictions", 1)))
        for row, was in zip(read_csv(tmp_path / name), before, strict=True):
            for label in turned:
                assert row[label] != was[label]
                for who in BASELINES:
                    assert row[f"{label}_{who}"] == was[f"{label}_{who}"]


def test_other_songs_have_their_classes_mapped(data, model):
    # The same songs with the classes the other way round: the map turns them back.
    expected = evaluate_split(model, data, "test", train=data)["genre"]
    other = PhraseDataModule(data.shards.folder, max_tokens=64)
    n = len(data.shards.labels.classes["genre"])
    other.labels = {"genre": n - 1 - data.labels["genre"]}
    maps = {"genre": np.arange(n)[::-1].copy()}
    found = evaluate_split(model, other, "test", class_maps=maps, train=data)["genre"]
    assert found == expected


def test_without_the_training_songs_the_baselines_say_so(data, model, tmp_path):
    path = tmp_path / "p.csv"
    found = evaluate_split(model, data, "test", train=None, predictions=path)
    for level in found["genre"].values():
        assert level["baselines"] == dict.fromkeys(BASELINES)
        assert level["baselines_missing"] == dict.fromkeys(BASELINES, GONE)
        assert "baselines_train" not in level
    assert "genre_model" in read_csv(path)[0]
    assert "genre_hist_gb" not in read_csv(path)[0]


def test_training_songs_of_other_classes_are_no_ground_for_baselines(data):
    classes = data.shards.labels.classes
    odd = Guess({"genre": (*classes["genre"], "polka"), "emotion": classes["emotion"]})
    found = evaluate_split(odd, data, "test", train=data)
    assert set(found["genre"]["song"]["baselines_missing"].values()) == {OTHER_CLASSES}
    assert all(found["emotion"]["song"]["baselines"][name] for name in LEARNT)


def test_calibration_is_fitted_on_the_validation_songs_alone(data, model, result):
    calibration = fit_calibration(model, data)
    assert set(calibration.levels) == set(result[0])
    n = {"phrase": len(data.phrases("val")), "song": len(data.rows("val"))}
    found = evaluate_split(model, data, "test", train=data, calibration=calibration)
    turned = PhraseDataModule(data.shards.folder, max_tokens=64)
    turned.labels = {k: v.copy() for k, v in data.labels.items()}
    for classes in turned.labels.values():
        classes[data.rows("test")] = 0
    assert fit_calibration(model, turned) == calibration
    for label, levels in found.items():
        for level, scores in levels.items():
            fit = calibration.levels[label][level]
            assert fit.n == n[level]
            assert scores["calibrated"]["temperature"] == fit.temperature
            assert scores["abstention"]["confidence"] == "calibrated"
            was = result[0][label][level]
            assert was["calibrated"] is was["out_of_domain"] is None
            for key in ("accuracy", "macro_f1", "roc_auc", "confusion", "ece", "nll", "baselines"):
                assert scores[key] == was[key]
    json.dumps(found, allow_nan=False)


def test_songs_without_a_label_are_flagged_apart(data, model):
    other = PhraseDataModule(data.shards.folder, max_tokens=64)
    test = data.rows("test")
    other.labels = {"genre": data.labels["genre"].copy()}
    other.labels["genre"][test[:3]] = UNKNOWN
    found = evaluate_split(
        model, other, "test", train=None, calibration=fit_calibration(model, data)
    )
    shares = found["genre"]["song"]["out_of_domain"]
    assert shares["unlabelled"]["n"] == 3
    assert shares["labelled"]["n"] == found["genre"]["song"]["n"] == len(test) - 3
    assert 0 <= shares["labelled"]["energy"] <= 1


def test_a_song_model_takes_the_place_of_the_mean(data, model, tmp_path):
    pool = Pool({"encoder": 1.0}, {"encoder": 1.0}, 0.1, 9)  # ten times as sure as the mean
    classes = {label: tuple(head.classes) for label, head in model.label_heads().items()}
    blends = Blends(classes, dict.fromkeys(classes, Blend(pool, {})), "any")
    path = tmp_path / "p.csv"
    found = evaluate_split(model, data, "test", train=None, blends=blends, predictions=path)
    alone = evaluate_split(model, data, "test", train=None)["genre"]
    song, phrase = found["genre"]["song"], found["genre"]["phrase"]
    assert phrase == alone["phrase"]
    assert song["song_model"]["weights"] == {"encoder": 1}
    assert (
        song["accuracy"] == alone["song"]["accuracy"] == song["components"]["encoder"]["accuracy"]
    )
    assert song["nll"] > 2 * alone["song"]["nll"]
    assert "encoder" not in song["baselines"]
    row = read_csv(tmp_path / "p_songs.csv")[0]
    assert row["genre_encoder"] == row["genre_model"]
    means, blended = (fit_calibration(model, data, blends=b) for b in (None, blends))
    of_songs = [c.levels["genre"]["song"].temperature for c in (means, blended)]
    assert of_songs[1] > 1.9 * of_songs[0]  # both are held towards 1
    assert (means.song_models, blended.song_models) == (False, True)


def test_several_sources_give_a_baseline_and_scores_within_them(data, model, monkeypatch):
    columns = data.shards.manifest.column
    odd = [["left", "right"][i % 2] for i in range(len(data.shards.manifest))]
    monkeypatch.setattr(
        data.shards.manifest, "column", lambda name: odd if name == "source" else columns(name)
    )
    songs = evaluate_split(model, data, "test", train=data)["genre"]["song"]
    assert songs["baselines"]["source_majority"]["accuracy"] < 0.7
    assert set(songs["by_source"]) <= {"left", "right"}
    assert songs["within_source"]["macro_f1_restricted"] is not None
    assert set(songs["within_source"]["baselines"]) == {*BASELINES, "source_majority"}
    gone = evaluate_split(model, data, "test", train=None)["genre"]["song"]
    assert "source_majority" not in gone["baselines"]
    assert gone["within_source"]["macro_f1_restricted"] is None
