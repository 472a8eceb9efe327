"""``compile=true``: refused where it cannot run, before anything is prepared; else it compiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from midigenre.checks import check_compile
from midigenre.errors import UserError


def settings(**changed: Any) -> DictConfig:
    return OmegaConf.create(
        {
            "compile": True,
            "trainer": {"accelerator": "gpu"},
            "precision": {"precision": "bf16-mixed"},
            "model": {
                "_target_": "midigenre.models.Encoder", "name": "base", "d_model": 512,
                "n_heads": 8, "attention_dropout": 0.0,
            },
        } | changed
    )  # fmt: skip


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")


@pytest.mark.usefixtures("gpu")
def test_takes_an_encoder_in_half_precision_on_a_gpu() -> None:
    check_compile(settings())
    check_compile(settings(precision={"precision": "16-mixed"}))
    check_compile(settings(compile=False, trainer={"accelerator": "cpu"}))


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"trainer": {"accelerator": "cpu"}}, "accelerator=cpu.*trainer=gpu precision=bf16"),
        ({"precision": {"precision": "32-true"}}, "precision 32-true: give"),
        ({"trainer": {"accelerator": "gpu", "strategy": {"_target_": "x.FSDPStrategy"}}}, "fsdp"),
        ({"model": {"_target_": "midigenre.models.LSTM", "name": "lstm"}}, "model=lstm"),
        (
            {"model": {"_target_": "midigenre.models.Encoder", "d_model": 512, "n_heads": 8,
                       "attention_dropout": 0.1}},
            r"attention_dropout=0\.1: set it to 0",
        ),
        (
            {"model": {"_target_": "midigenre.models.Encoder", "d_model": 96, "n_heads": 8,
                       "attention_dropout": 0.0}},
            r"heads of .* \(these have 12\).*model\.n_heads=8.*leave compile out",
        ),
    ],
)  # fmt: skip
def test_refuses_what_its_attention_does_not_run_on(changed: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        check_compile(settings(**changed))


def test_refuses_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device here: leave compile out"):
        check_compile(settings())


@pytest.mark.usefixtures("gpu")
def test_refuses_gpus_without_variable_length_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(UserError, match=r"Ampere.*this one has 7\.5.*Tesla T4"):
        check_compile(settings())


def test_refused_before_anything_is_prepared(midigenre, home) -> None:
    shards = home / "shards"
    before = sorted(shards.iterdir()) if shards.is_dir() else []
    status, _, err = midigenre("train", "corpus=toy", "corpus.n_songs=31", "compile=true")
    assert status == 2
    assert "precision 32-true: give trainer=gpu precision=bf16" in " ".join(err.split())
    assert (sorted(shards.iterdir()) if shards.is_dir() else []) == before


def test_sharded_matrices_are_no_work_for_muon(midigenre, home) -> None:
    before = sorted(home.rglob("*"))
    status, _, err = midigenre("train", "corpus=toy", "corpus.n_songs=31", "trainer=fsdp")
    assert status == 2
    assert "trainer=fsdp shards matrices" in err
    assert "give optim=adamw" in err
    assert sorted(home.rglob("*")) == before


def test_a_run_compiles_its_layers(midigenre, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled pass itself needs a GPU; here it is only seen that it is asked for."""
    asked = []
    monkeypatch.setattr("midigenre.commands.train.check_compile", lambda cfg: None)
    monkeypatch.setattr("midigenre.commands.train.compile_layers", asked.append)
    small = ("corpus=toy", "corpus.n_songs=48", "model.d_model=32", "model.n_heads=2",
             "model.n_layers=1", "model.d_ff=32", "trainer.max_epochs=1")  # fmt: skip
    assert midigenre("train", *small, "compile=true")[0] == 0
    assert len(asked) == 1
