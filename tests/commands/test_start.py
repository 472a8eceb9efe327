"""What a part may start from, and what several processes may validate by."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from midigenre.checks import check_clock, check_songs, source_of
from midigenre.errors import UserError


def settings(**changed: Any) -> dict[str, Any]:
    return {
        "corpus": {"_target_": "midigenre.corpora.toy.Toy", "seed": 0},
        "tokenizer": {"name": "remi"}, "model": {"name": "tiny"}, "optim": {},
        "split": {"seed": 0, "fractions": [0.8, 0.1, 0.1]},
        "task": {"_target_": "midigenre.tasks.classify.ClassifyTask", "name": "genre"},
        "protocol": {"name": "leave_one_source_out", "sources": ["groove"], "part": 1},
        "labels": None, "shards": None, "prepare": {"grouping": "near"},
    } | changed  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A finished part that left out groove."""
    (tmp_path / "config.yaml").write_text(json.dumps(settings()))  # JSON is YAML
    about = {"protocol": {"part": 1, "name": "source-groove"}}
    (tmp_path / "metrics.json").write_text(json.dumps(about))
    return tmp_path


def started(source: Path, name: str, **changed: Any) -> str:
    cfg, said = OmegaConf.create(settings(**changed) | {"init_from": str(source)}), []
    assert source_of(cfg, name, said.append) == str(source)
    return " ".join(said)


def test_a_part_of_another_source_is_told_by_its_name(source: Path) -> None:
    every = {"name": "leave_one_source_out", "sources": None}
    assert started(source, "source-groove") == ""
    # groove is the second of all sources; the first is one that the source was trained on.
    assert started(source, "source-groove", protocol=every | {"part": 2}) == ""
    said = started(source, "source-asap", protocol=every | {"part": 1})
    assert "may have seen labels and notes of test songs of source-asap" in said


def test_a_part_with_other_shares_is_told(source: Path) -> None:
    fractions = {"seed": 0, "fractions": [0.6, 0.3, 0.1]}
    assert "may have seen" in started(source, "source-groove", split=fractions)


@pytest.mark.parametrize("interval", [None, 0.5, 500])
def test_steps_are_shared_by_all_processes(interval: float | None) -> None:
    check_clock(OmegaConf.create({"trainer": {"val_check_interval": interval}}), 8)
    check_clock(OmegaConf.create({"trainer": {}}), 8)


@pytest.mark.parametrize("interval", ["00:00:02:00", {"minutes": 2}])
def test_the_clock_is_not(interval: Any) -> None:
    cfg = OmegaConf.create({"trainer": {"val_check_interval": interval}})
    check_clock(cfg, 1)
    with pytest.raises(UserError, match="goes by the clock, which 2 processes do not share"):
        check_clock(cfg, 2)


def test_a_classifier_of_one_class_is_refused() -> None:
    classes = {"genre": ("jazz", "rock"), "emotion": ("sad",)}
    labels = {"genre": np.array([1, -1, 1]), "emotion": np.array([0, 0, -1])}
    data = SimpleNamespace(
        task_labels=("genre",), labels=labels, rows=lambda split: np.array([0]),
        shards=SimpleNamespace(labels=SimpleNamespace(classes=classes)),
    )  # fmt: skip
    tasks = {
        "genre": "midigenre.tasks.classify.ClassifyTask",
        "generate": "midigenre.tasks.generate.GenerateTask",
    }
    cfgs = {k: OmegaConf.create({"task": {"name": k, "_target_": v}}) for k, v in tasks.items()}
    check_songs(cfgs["generate"], data)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"every song is of one genre, 'rock'.*task=mlm"):
        check_songs(cfgs["genre"], data)  # type: ignore[arg-type]
    labels["genre"][1] = 0
    check_songs(cfgs["genre"], data)  # type: ignore[arg-type]


def test_one_class_is_refused_before_songs_are_encoded(midigenre, home, tmp_path) -> None:
    (tmp_path / "jazz").mkdir()
    for i in range(3):
        (tmp_path / "jazz" / f"{i}.mid").write_bytes(b"MThd")  # reading it would say more
    before = set((home / "shards").glob("*"))
    status, _, err = midigenre("train", "corpus=folder", f"corpus.root={tmp_path}")
    assert status == 2
    assert "every song is of one genre, 'jazz'" in err
    assert set((home / "shards").glob("*")) == before
