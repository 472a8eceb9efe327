"""Study 11 on the toy corpus: each setting trained once, without a test; its tables and figure."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

STUDY = Path(__file__).resolve().parents[2] / "experiments" / "11_sensitivity"
QUICK = ("corpus=toy", "corpus.n_songs=48", "model.d_model=32", "model.n_heads=2", "model.d_ff=32",
         "data.max_tokens=64", "trainer.max_epochs=1", "trainer.max_steps=2")  # fmt: skip


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(STUDY))
    monkeypatch.delitem(sys.modules, "study", raising=False)
    import study as module  # type: ignore[import-not-found]

    base = replace(module.BASE, layers=1, batch=16)
    monkeypatch.setattr(module, "SWEEPS", {"batch": {16: base}})
    monkeypatch.setattr(module, "SLIDES", {"batch": {16: 0.5}})
    cause = replace(base, lr=1e-3, norm="pre", schedule="onecycle")
    monkeypatch.setattr(module, "CAUSES", {"pre-norm, OneCycle": cause})
    noisy = replace(base, change="extra norm", noise=True)
    monkeypatch.setattr(module, "NOISES", {"extra norm": (replace(noisy, noise=False), noisy)})
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MIDIGENRE_HOME", raising=False)
    return module


@pytest.mark.slow
def test_every_setting_is_trained_once_and_never_tested(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = study.midigenre, []

    def counted(*arguments: str) -> str:
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(study, "midigenre", counted)
    monkeypatch.setattr(study, "commit", lambda: "abc1234")
    found = study.study([0], tmp_path / "runs", QUICK)
    assert len(calls) == 4
    assert [row["steps"] for row in found] == [2] * 4
    assert all(0 <= row["accuracy"] < 1 and row["loss"] > 0 for row in found)
    configs = [path.read_text() for path in sorted((tmp_path / "runs").glob("*/0/config.yaml"))]
    assert [
        tuple(of in text for of in ("norm: pre", "OneCycle", "extra_norm: true", "TokenNoise"))
        for text in configs
    ] == [
        (False, False, False, False), (False, False, True, False), (False, False, True, True),
        (True, True, False, False),
    ]  # fmt: skip
    assert found[2]["loss"] != found[3]["loss"]
    assert not list((tmp_path / "runs").glob("*/0/evaluation.json"))
    assert study.study([0], tmp_path / "runs", QUICK) == found
    assert len(calls) == 4  # nothing twice
    text = study.tables({"rows": found})
    assert "| batch 16 |" in text
    assert "| pre-norm, OneCycle |" in text
    assert text.count("| extra norm |") == 1


def test_half_of_the_ids_fall_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(STUDY))
    from token_noise import TokenNoise  # type: ignore[import-not-found]

    def batch() -> SimpleNamespace:
        return SimpleNamespace(ids_NF=torch.arange(4000).remainder(300)[:, None])

    clean, noisy, again, other = batch().ids_NF, batch(), batch(), batch()
    trainer: Any = SimpleNamespace(current_epoch=3)
    TokenNoise(seed=1).on_train_batch_start(trainer, None, noisy, 5)
    TokenNoise(seed=1).on_train_batch_start(trainer, None, again, 5)
    TokenNoise(seed=1).on_train_batch_start(trainer, None, other, 6)
    fallen = clean - noisy.ids_NF
    assert set(fallen.unique().tolist()) == {0, 1}
    assert 0.45 < fallen[clean > 0].float().mean() < 0.55
    assert not fallen[clean == 0].any()
    assert torch.equal(noisy.ids_NF, again.ids_NF)
    assert not torch.equal(noisy.ids_NF, other.ids_NF)


def test_the_full_study_is_the_slides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(STUDY))
    monkeypatch.delitem(sys.modules, "study", raising=False)
    import study as module

    everything = module.settings()
    assert len(everything) == len({setting.name for setting in everything}) == 8 + 3 + 5
    assert {name: set(sweep) for name, sweep in module.SWEEPS.items()} == {
        name: set(values) for name, values in module.SLIDES.items()
    }
    rows = [
        {"setting": setting.name, "seed": seed, "accuracy": 0.1 * seed, "loss": 1.0, "steps": 5,
         "seconds": 60}
        for setting in everything for seed in (1, 2, 3)
    ]  # fmt: skip
    made = module.figure({"rows": rows})
    assert [len(axes.lines[0].get_xdata()) for axes in made.axes] == [4, 3, 3]
    assert "0.200 (0.100–0.300)" in module.tables({"rows": rows})
