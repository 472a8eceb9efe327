"""Study 05: a training is done once, and its differences are those of the run's own evaluation."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from midigenre.evaluation.bootstrap import paired_bootstrap
from midigenre.evaluation.predictions import Predictions
from midigenre.evaluation.scores import by_source

STUDY = Path(__file__).resolve().parents[2] / "experiments" / "05_learning"
GENRES = ["folk", "jazz", "rock"]
N = 60


def _module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"learning_{name}", STUDY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _versus() -> Callable[[list[Path]], dict[str, Any]]:
    versus: Callable[[list[Path]], dict[str, Any]] = _module("versus").versus
    return versus


def _run(folder: Path, seed: int, **changed: list[str]) -> dict[str, list[str]]:
    """A run's table of songs: three sources, of which "solo" has one genre only."""
    rng = np.random.default_rng(seed)
    source = np.repeat(["band", "drums", "solo"], N // 3)
    truth = np.where(source == "solo", "folk", np.random.default_rng(7).choice(GENRES, N))

    def guess(skill: float, draw: np.random.Generator) -> list[str]:
        found: list[str] = np.where(draw.random(N) < skill, truth, draw.choice(GENRES, N)).tolist()
        return found

    same = np.random.default_rng(8)  # a baseline does not depend on the run's seed
    columns = {
        "song_id": [f"s{i}" for i in range(N)],
        "source": source.tolist(),
        "genre": truth.tolist(),
        "genre_model": guess(0.7, rng),
        "genre_hist_gb": guess(0.5, same),
        "genre_encoder": guess(0.6, rng),
        "genre_log_prob_folk": ["-1"] * N,
        **changed,
    }
    folder.mkdir()
    with open(folder / "predictions_songs.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return columns


def test_one_run_has_the_intervals_of_its_own_evaluation(tmp_path: Path) -> None:
    table = _run(tmp_path / "run", 0)
    found = _versus()([tmp_path / "run"])["genre"]
    assert list(found) == ["model", "encoder"]
    for who, columns in found.items():
        assert list(columns) == ["hist_gb"]
        ours, theirs = table[f"genre_{who}"], table["genre_hist_gb"]
        overall = paired_bootstrap(table["genre"], ours, theirs, range(N))["macro_f1"]["ci95"]
        assert columns["hist_gb"]["overall"] == pytest.approx(overall)
        codes = {name: np.array([GENRES.index(g) for g in table[name]])
                 for name in ("genre", f"genre_{who}", "genre_hist_gb")}  # fmt: skip
        rows = Predictions(
            tuple(GENRES),
            np.arange(N),
            np.arange(N),
            codes["genre"],
            np.log(np.where(np.eye(3)[codes[f"genre_{who}"]] > 0, 0.98, 0.01)),
            {"hist_gb": codes["genre_hist_gb"]},
            where={"source": np.array(table["source"])},
        )
        within = by_source(rows)["within_source"]
        assert within["sources"] == ["band", "drums"]
        kept = within["baselines"]["hist_gb"]["versus_model"]["macro_f1"]["ci95"]
        assert columns["hist_gb"]["within_source"] == pytest.approx(kept)


def test_the_mean_over_seeds_is_steadier_than_one(tmp_path: Path) -> None:
    for seed in range(4):
        _run(tmp_path / str(seed), seed)
    versus = _versus()
    together = versus([tmp_path / str(s) for s in range(4)])["genre"]["model"]["hist_gb"]
    alone = [versus([tmp_path / str(s)])["genre"]["model"]["hist_gb"] for s in range(4)]
    for where in ("overall", "within_source"):
        widths = [np.ptp(one[where]) for one in alone]
        assert np.ptp(together[where]) < np.mean(widths)
        middles = [np.mean(one[where]) for one in alone]
        assert np.mean(together[where]) == pytest.approx(np.mean(middles), abs=0.03)


def test_a_corpus_without_sources_has_nothing_within_one(tmp_path: Path) -> None:
    _run(tmp_path / "run", 0, source=[""] * N)
    found = _versus()([tmp_path / "run"])["genre"]["model"]["hist_gb"]
    assert found["within_source"] is None
    assert found["overall"] is not None


def test_equal_answers_do_not_differ(tmp_path: Path) -> None:
    table = _run(tmp_path / "a", 0)
    _run(tmp_path / "b", 1, genre_model=table["genre_hist_gb"])
    assert _versus()([tmp_path / "b"])["genre"]["model"]["hist_gb"] == {
        "overall": [0, 0],
        "within_source": [0, 0],
    }


def test_without_sources_there_is_nothing_within(tmp_path: Path) -> None:
    _run(tmp_path / "run", 0, source=["band"] * N, genre=["folk", "jazz"] * (N // 2))
    one = _versus()([tmp_path / "run"])["genre"]["model"]["hist_gb"]
    assert one["within_source"] == pytest.approx(one["overall"])  # one source: all songs
    _run(tmp_path / "solo", 0, source=GENRES * (N // 3), genre=GENRES * (N // 3))
    one = _versus()([tmp_path / "solo"])["genre"]["model"]["hist_gb"]
    assert one["within_source"] is None  # a source for each genre


def test_runs_of_other_songs_are_refused(tmp_path: Path) -> None:
    _run(tmp_path / "a", 0)
    _run(tmp_path / "b", 1, song_id=[f"t{i}" for i in range(N)])
    with pytest.raises(ValueError, match=r"/b tests other songs than .*/a: compare the same split"):
        _versus()([tmp_path / "a", tmp_path / "b"])


@pytest.mark.slow
def test_the_study_trains_once_and_keeps_the_scores(tmp_path: Path) -> None:
    name = "genre and emotion"
    shutil.copytree(STUDY, tmp_path / "study", ignore=shutil.ignore_patterns("results", "__*"))

    def study() -> str:
        command = [sys.executable, "study/study.py", "multitask", "--only", name]
        small = ["corpus.n_songs=24", "trainer.max_epochs=1", "data.phrases_per_song=1"]
        done = subprocess.run(
            [*command, "--", *small, f"home={tmp_path}/home"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = study()
    metrics = tmp_path / "runs/05_learning/multitask/emotion_at_half_weight/0/0/metrics.json"
    trained = metrics.stat().st_mtime_ns
    assert study() == first
    assert metrics.stat().st_mtime_ns == trained
    # What another command has left counts too; what was stopped does not.
    for seed in ("1", "2"):
        shutil.copytree(metrics.parents[1], metrics.parents[2] / seed)
    (metrics.parents[2] / "2" / "0" / "cost.json").unlink()
    assert f"| {name} | genre | 2 |" in study()
    shutil.rmtree(metrics.parents[2] / "1")
    assert study() == first
    kept = json.loads((tmp_path / "study/results/multitask.json").read_text())
    assert "home" not in str(kept["overrides"])  # where things lie is no business of the results
    (run,) = kept["configurations"][name]["runs"]
    scores = json.loads(metrics.read_text())["test"]
    for label in ("genre", "emotion"):
        got = run["labels"][label]["song"]["macro_f1"]
        assert got == pytest.approx(scores[f"test/{label}/song/macro_f1"])
        assert f"| {name} | {label} | 1 | {got:.3f} |" in first
        for baseline in ("majority", "ngram_lr", "hist_gb"):
            assert f"| {baseline.replace('_', chr(92) + '_')} | {label} |" in first


def test_ways_to_a_song_are_all_scored_on_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is tested in each way, whatever its own, and so are the baselines without it."""
    monkeypatch.syspath_prepend(STUDY)
    songs = _module("songs")
    asked = []

    class Task:
        @staticmethod
        def test(model: str, data: Any, folder: Path | None, task: dict[str, Any]) -> Any:
            asked.append((model, task["song"], folder))
            score = {"mean": 0.8, "blend": 0.9}[task["song"]] + 0.02 * int(model)
            theirs = {"without_encoder": {"macro_f1": 0.6, "accuracy": 0.4}}
            song = {"macro_f1": score, "accuracy": 0.5, "calibrated": {"nll": 1.0},
                    "baselines": theirs,
                    "within_source": {"macro_f1": 0.25, "baselines": theirs}}  # fmt: skip
            return SimpleNamespace(evaluation={"genre": {"song": song}})

    task = OmegaConf.create({"task": {"song": "blend"}})
    monkeypatch.setattr(songs, "load_run", lambda run: SimpleNamespace(
        model=run, config=task, data={}))  # fmt: skip
    monkeypatch.setattr(songs, "own_shards", lambda *_: SimpleNamespace(folder=""))
    monkeypatch.setattr(songs, "PhraseDataModule", lambda folder: None)
    monkeypatch.setattr(songs, "class_of", lambda task: Task)
    found: dict[str, list[dict[str, float]]] = {}
    for run in ("0", "1"):
        for way, scores in songs.scored(run, ".", Path(run)).items():
            found.setdefault(way, []).append(scores)
    ways = {"mean": False, "blend": True}
    assert asked == [
        (r, way, Path(r) if keeps else None) for r in "01" for way, keeps in ways.items()
    ]
    lines = songs.table(found).splitlines()
    assert len(lines) == 5
    # Two values 0.02 apart: their mean's standard error is 0.01, t of one degree 12.706.
    assert "| mean | 0.810 ± 0.127 (0.800, 0.820) |" in lines[2]
    assert lines[4].startswith("| without\\_encoder | 0.600 ± 0.000 (0.600, 0.600) |")
