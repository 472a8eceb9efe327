"""AdamW's groups, the shapes of the schedules, Adam under one cycle, Muon."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from midigenre.errors import UserError
from midigenre.models import Encoder, FieldEmbedding, LabelHead, PhraseClassifier, Pooling
from midigenre.tasks.optim import (
    SCHEDULES,
    AdamWSettings,
    Muon,
    MuonSettings,
    OneCycleSettings,
    OptimSettings,
)


def rates(total: int, **values: Any) -> list[float]:
    """The factor at each step that is made, and at the end."""
    factor = AdamWSettings(lr=1.0, **values).factor(total)
    return [factor(step) for step in range(total + 1)]


def walk(optimizer: torch.optim.Optimizer, schedule: LRScheduler, n: int) -> list[Any]:
    """Rate and betas in each of the next ``n`` steps."""
    found = []
    for _ in range(n):
        found.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]))
        optimizer.step()
        schedule.step()
    return found


def trained(optim: OptimSettings, total: int) -> list[Any]:
    optimizer = optim.optimizer(nn.Linear(2, 2))
    return walk(optimizer, optim.scheduler(optimizer, total), total)


def classifier() -> PhraseClassifier:
    return PhraseClassifier(
        FieldEmbedding((5, 7), 8),
        Encoder(8, 1, 2, 8, positions="learned"),
        Pooling("cls", 8),
        [LabelHead("genre", ("a", "b"), 8)],
    )


def test_only_matrices_decay() -> None:
    model = classifier()
    optimizer = AdamWSettings(lr=0.1, weight_decay=0.3).optimizer(model)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        plain = name.endswith("bias") or "norm" in name or name == "cls_D"
        assert decay[id(p)] == (0.0 if plain else 0.3), name
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.1, (0.9, 0.98), 1e-8)


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    found = [p for g in AdamWSettings(0.1).optimizer(model).param_groups for p in g["params"]]
    assert {id(p) for p in found} == {id(p) for p in model[1].parameters()}
    norms = nn.LayerNorm(3)
    assert len(AdamWSettings(0.1).optimizer(norms).param_groups) == 1


def test_decay_is_decoupled() -> None:
    layer = nn.Linear(2, 2)
    before = {n: p.detach().clone() for n, p in layer.named_parameters()}
    optimizer = AdamWSettings(lr=0.1, weight_decay=0.5).optimizer(layer)
    for p in layer.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before["weight"] * (1 - 0.1 * 0.5))
    torch.testing.assert_close(layer.bias.detach(), before["bias"])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_rise_peak_and_end(schedule: str, final: float) -> None:
    found = rates(100, schedule=schedule, warmup_share=0.1, final_ratio=final)
    assert found[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert found[10] == max(found) == 1.0
    assert found[100] == pytest.approx(1.0 if schedule == "constant" else final)
    rest = found[10:]
    assert all(a >= b for a, b in pairwise(rest))


def test_shapes() -> None:
    linear = rates(110, schedule="linear", warmup_steps=10)
    assert linear[10:] == pytest.approx([1 - i / 100 for i in range(101)])
    cosine = rates(110, schedule="cosine", warmup_steps=10, final_ratio=0.2)
    assert cosine[60] == pytest.approx(0.6)
    assert cosine[35] > linear[35]
    assert cosine[85] == pytest.approx(0.2 + 0.8 * 0.14644661)
    assert rates(50, schedule="constant", warmup_steps=0) == [1.0] * 51


def test_warmup_steps_replace_the_share() -> None:
    assert rates(100, warmup_steps=4)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates(100, warmup_steps=0, warmup_share=0.5)[0] == 1.0
    assert rates(100, warmup_share=0.0)[0] == 1.0


@given(
    st.sampled_from(SCHEDULES), st.integers(1, 300), st.floats(0, 1), st.floats(0, 1),
    st.one_of(st.none(), st.integers(0, 400)),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_rates_stay_within_bounds(
    schedule: str, total: int, warmup: float, final: float, steps: int | None
) -> None:
    factor = AdamWSettings(
        1.0, schedule=schedule, warmup_share=warmup, final_ratio=final, warmup_steps=steps
    ).factor(total)  # fmt: skip
    found = [factor(step) for step in range(total + 5)]
    assert all(0 <= rate <= 1 for rate in found)
    assert found[0] > 0 or final == 0
    if (steps if steps is not None else round(warmup * total)) < total:
        assert min(found[-4:]) == max(found[-4:])


def test_with_the_scheduler_of_torch() -> None:
    found = [rate for rate, _ in trained(AdamWSettings(lr=0.2, warmup_steps=3), 10)[:5]]
    assert found[:4] == pytest.approx([0.05, 0.1, 0.15, 0.2])
    assert found[4] < 0.2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("schedule", "step"),
        ("lr", 0.0),
        ("lr", -1e-3),
        ("lr", float("nan")),
        ("lr", None),
        ("lr", "fast"),
        ("warmup_share", 1.5),
        ("warmup_share", float("nan")),
        ("warmup_steps", -1),
        ("final_ratio", 2.0),
        ("weight_decay", -0.1),
        ("eps", -1e-8),
        ("betas", (0.9, 1.0)),
    ],
)
def test_bad_values_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"optim\.{name}"):
        AdamWSettings(**({"lr": 0.1} | {name: value}))


def test_one_cycle_is_torchs_with_its_defaults() -> None:
    optimizer = torch.optim.Adam(nn.Linear(2, 2).parameters(), lr=0.1)
    expected = walk(optimizer, OneCycleLR(optimizer, max_lr=0.1, total_steps=101), 101)
    assert trained(OneCycleSettings(lr=0.1), 101) == expected


def test_one_cycle_rises_and_falls_and_beta1_goes_against_it() -> None:
    found = trained(OneCycleSettings(lr=0.1), 100)
    rates, betas = [rate for rate, _ in found], [b for _, (b, _) in found]
    assert rates[0] == pytest.approx(0.1 / 25)
    assert rates[29] == max(rates) == pytest.approx(0.1)  # the last of the first 30 %
    assert rates[-1] == pytest.approx(0.1 / 25 / 1e4)
    assert (betas[0], betas[29], betas[-1]) == pytest.approx((0.95, 0.85, 0.95))
    assert {second for _, (_, second) in found} == {0.999}


@pytest.mark.parametrize("total", range(1, 25))
def test_one_cycle_of_any_length(total: int) -> None:
    found = [rate for rate, _ in trained(OneCycleSettings(lr=0.1), total)]
    assert all(math.isfinite(rate) and 0 < rate <= 0.1 for rate in found)
    assert found[-1] == pytest.approx(0.1 / 25 / 1e4)


def test_adam_decays_nothing_and_leaves_frozen_parameters_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    optimizer = OneCycleSettings(lr=0.1, eps=1e-6).optimizer(model)
    (group,) = optimizer.param_groups
    assert type(optimizer) is torch.optim.Adam
    assert [id(p) for p in group["params"]] == [id(p) for p in model[1].parameters()]
    assert (group["weight_decay"], group["eps"], group["lr"]) == (0, 1e-6, 0.1)


def test_one_cycle_continues_from_a_checkpoint() -> None:
    optim = OneCycleSettings(lr=0.1)
    layer = nn.Linear(2, 2)
    optimizer = optim.optimizer(layer)
    schedule = optim.scheduler(optimizer, 20)
    before = walk(optimizer, schedule, 8)
    saved = optimizer.state_dict(), schedule.state_dict()
    rest = walk(optimizer, schedule, 12)
    assert before + rest == trained(optim, 20)

    def resumed(total: int, n: int) -> list[Any]:
        optimizer = optim.optimizer(layer)
        schedule = optim.scheduler(optimizer, total)
        optimizer.load_state_dict(saved[0])
        schedule.load_state_dict(saved[1])
        return walk(optimizer, schedule, n)

    assert resumed(20, 12) == rest
    # With new bounds the rest is that of the longer run: torch's own would stop at the old end.
    assert resumed(40, 32)[1:] == trained(optim, 40)[9:]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0),
        ("lr", None),
        ("betas", (0.9, 1.0)),
        ("eps", -1.0),
    ],
)
def test_bad_values_of_one_cycle_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"optim\.{name}"):
        OneCycleSettings(**({"lr": 0.1} | {name: value}))


@given(st.integers(1, 40), st.integers(1, 40), st.floats(1e-6, 1e6))
@settings(max_examples=50, deadline=None)
def test_orthogonal_keeps_the_directions(rows: int, columns: int, scale: float) -> None:
    torch.manual_seed(rows * 41 + columns)
    left, _ = torch.linalg.qr(torch.randn(rows, rows))
    right, _ = torch.linalg.qr(torch.randn(columns, columns))
    n = min(rows, columns)
    values = scale * torch.linspace(0.1, 1.0, n)
    matrix = left[:, :n] * values @ right[:n]
    found = left[:, :n].T @ Muon.orthogonal(matrix) @ right[:n].T
    assert ((found.diag() > 0.6) & (found.diag() < 1.3)).all()
    assert (found - torch.diag(found.diag())).abs().max() < 1e-3


def test_muon_is_torchs_for_matrices() -> None:
    """But for its bfloat16."""
    torch.manual_seed(0)
    before, gradients = torch.randn(12, 7), torch.randn(20, 12, 7)
    mine, theirs = (nn.Parameter(before.clone()) for _ in range(2))
    ours = Muon([{"params": [mine], "muon": True}], lr=0.01, weight_decay=0.1)
    torchs = torch.optim.Muon([theirs], 0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for gradient in gradients:
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        ours.step()
        torchs.step()
    assert (mine - before).abs().max() > 0.05
    torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-3)


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest() -> None:
    model = classifier()
    names = {id(p): name for name, p in model.named_parameters()}
    optim = MuonSettings(lr=0.1, weight_decay=0.3, layer_decay=0.5)
    optimizer = optim.optimizer(model)
    hidden = {names[id(p)] for g in optimizer.param_groups if g["muon"] for p in g["params"]}
    assert hidden == {
        "embedding.project.weight", "heads.0.hidden.weight",
        "backbone.layers.0.attention.qkv.weight", "backbone.layers.0.attention.out.weight",
        "backbone.layers.0.feed_forward.up.weight", "backbone.layers.0.feed_forward.down.weight",
    }  # fmt: skip

    def settings_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return {
            names[id(p)]: (g["lr"], g["weight_decay"])
            for g in optimizer.param_groups
            for p in g["params"]
        }

    adamw = AdamWSettings(lr=0.1, weight_decay=0.3, layer_decay=0.5)
    assert settings_of(optimizer) == settings_of(adamw.optimizer(model))


def test_a_step_of_muon_is_adamws_for_the_rest_and_resumes() -> None:
    def run(optim: OptimSettings, resume_at: int | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))
        optimizer = optim.optimizer(model)
        for step in range(6):
            if step == resume_at:
                saved = optimizer.state_dict()
                optimizer = optim.optimizer(model)
                optimizer.load_state_dict(saved)

            def closure() -> float:
                optimizer.zero_grad()  # noqa: B023
                loss = (model(torch.arange(5)) - torch.arange(4)).square().sum()
                loss.backward()
                return float(loss.detach())

            assert optimizer.step(closure) > 0
        return {name: p.detach().clone() for name, p in model.named_parameters()}

    muon = run(MuonSettings(lr=0.1))
    resumed = run(MuonSettings(lr=0.1), resume_at=3)
    assert all(torch.equal(muon[name], resumed[name]) for name in muon)
    assert not torch.equal(muon["1.weight"], run(AdamWSettings(lr=0.1))["1.weight"])
    # Its own gradients know the matrix, so only the first step of the others is AdamW's to the bit.
    layer = classifier()
    steps = []
    for optim in (MuonSettings(lr=0.1), AdamWSettings(lr=0.1)):
        model = copy.deepcopy(layer)
        optimizer = optim.optimizer(model)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        steps.append(dict(model.named_parameters()))
    for name in ("cls_D", "embedding.tables.0.weight", "heads.0.out.weight"):
        torch.testing.assert_close(steps[0][name], steps[1][name])


def test_muon_rejects_sharded_matrices() -> None:
    model = classifier()
    hidden = model.label_heads()["genre"].hidden
    assert hidden is not None
    hidden.weight = nn.Parameter(torch.zeros(64))
    with pytest.raises(UserError, match=r"trainer=fsdp take optim=adamw"):
        MuonSettings(lr=0.1).optimizer(model)
