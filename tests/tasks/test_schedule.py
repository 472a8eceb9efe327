"""The rate follows the steps and, in a time box, the clock."""

from __future__ import annotations

import time
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Timer
from torch import nn

from midigenre.tasks.optim import (
    SCHEDULES,
    AdamWSettings,
    MuonSettings,
    OneCycleSettings,
    OptimSettings,
    time_share,
)

SETTINGS = {
    "adamw": AdamWSettings(lr=0.1, final_ratio=0.01),
    "warm-up of steps": AdamWSettings(lr=0.1, warmup_steps=5, schedule="linear"),
    "one cycle": OneCycleSettings(lr=0.1),
    "muon": MuonSettings(lr=0.1, final_ratio=0.01),
}


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.share = 0.0

    def __call__(self) -> float:
        return self.share


def walk(
    optim: OptimSettings, total: float, shares: list[float] | None, resume_at: int = -1
) -> list[float]:
    """The rate of every step; ``shares``: what the clock says behind each."""
    layer = nn.Linear(2, 2)

    def made(share: float) -> tuple[Any, Any, Clock]:
        clock = Clock()
        clock.share = share
        optimizer = optim.optimizer(layer)
        timed = None if shares is None else clock
        return optimizer, optim.scheduler(optimizer, total, timed), clock

    optimizer, schedule, clock = made(0.0)
    found = []
    for step in range(int(total) if shares is None else len(shares)):
        if step == resume_at:
            saved = optimizer.state_dict(), schedule.state_dict()
            optimizer, schedule, clock = made(clock.share)
            optimizer.load_state_dict(saved[0])
            schedule.load_state_dict(saved[1])
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if shares is not None:
            clock.share = shares[step]
        schedule.step()
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_a_clock_that_lags_changes_nothing(name: str) -> None:
    plain = walk(SETTINGS[name], 40, None)
    assert walk(SETTINGS[name], 40, [0.0] * 40) == pytest.approx(plain, rel=0.2, abs=1e-3)
    # Exactly so where the warm-up is a share, as by default.
    if name != "warm-up of steps":
        assert walk(SETTINGS[name], 40, [0.0] * 40) == plain


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("total", [1e6, float("inf")])
def test_the_end_comes_with_the_time(name: str, total: float) -> None:
    """20 steps of a million: without the clock the rate would still be rising."""
    optim = SETTINGS[name]
    found = walk(optim, total, [(i + 1) / 20 for i in range(21)])
    assert max(found) == pytest.approx(0.1, rel=0.25)  # a warm-up of steps falls with the clock
    assert found[0] < 0.03
    assert found[20] < 0.1 * 0.011
    peak = found.index(max(found))
    assert all(a >= b for a, b in pairwise(found[peak:]))
    assert all(a <= b for a, b in pairwise(found[: peak + 1]))
    assert peak <= 7


@given(
    st.sampled_from(SCHEDULES), st.integers(5, 500), st.integers(0, 600), st.floats(0, 1),
    st.floats(0, 1), st.one_of(st.none(), st.integers(0, 50)),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_bounded_and_at_its_end_by_either(
    schedule: str, total: int, step: int, share: float, final: float, warmup: int | None
) -> None:
    optim = AdamWSettings(1.0, schedule=schedule, final_ratio=final, warmup_steps=warmup)
    factor = optim.timed_factor(total)
    assert 0 <= factor(step, share) <= 1
    end = 1.0 if schedule == "constant" else final
    if warmup is None or step >= warmup:
        assert factor(step, 1.0) == pytest.approx(end)
        assert factor(max(step, total), share) == pytest.approx(end)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    ("timed", "total"), [(False, 20), (True, 20), (True, float("inf"))]
)  # without a clock something else must end the run
def test_resumed_is_uninterrupted(name: str, timed: bool, total: float) -> None:
    shares = [min(1.0, i / 15) for i in range(20)] if timed else None
    assert walk(SETTINGS[name], total, shares, resume_at=7) == walk(SETTINGS[name], total, shares)


def test_what_is_saved_is_plain() -> None:
    for optim in SETTINGS.values():
        optimizer = optim.optimizer(nn.Linear(2, 2))
        state = optim.scheduler(optimizer, 10, lambda: 0.5).state_dict()
        assert not any(callable(v) for k, v in state.items() if k != "_anneal_func")
        assert "_share" not in state


def test_the_share_is_the_timers_and_resumes_with_it() -> None:
    def trainer(*callbacks: Any) -> Any:
        strategy = SimpleNamespace(broadcast=lambda value: value)
        return SimpleNamespace(callbacks=list(callbacks), strategy=strategy)

    assert time_share(trainer(Timer())) is None
    timer = Timer(duration={"seconds": 100})
    share = time_share(trainer(Timer(), timer))
    assert share is not None
    assert share() == 0
    timer.load_state_dict({"time_elapsed": {"train": 40.0}})
    assert share() == pytest.approx(0.4)
    timer.on_train_start(trainer(), SimpleNamespace())  # type: ignore[arg-type]
    time.sleep(0.02)
    assert 0.4 < share() < 0.6
    timer.load_state_dict({"time_elapsed": {"train": 1000.0}})
    assert share() == 1


def test_the_first_process_tells_the_time() -> None:
    strategy = SimpleNamespace(broadcast=lambda value: 0.25)
    timer = Timer(duration={"seconds": 100})
    share = time_share(SimpleNamespace(callbacks=[timer], strategy=strategy))  # type: ignore[arg-type]
    assert share is not None
    assert share() == 0.25


def test_rates_of_layers_keep_their_proportion() -> None:
    model = nn.ModuleDict({"embedding": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    optim = AdamWSettings(lr=0.1, layer_decay=0.5)
    optimizer = optim.optimizer(model)
    clock = Clock()
    schedule = optim.scheduler(optimizer, 100, clock)
    for share in (0.1, 0.5, 0.9):
        clock.share = share
        optimizer.step()
        schedule.step()
        rates = torch.tensor([group["lr"] for group in optimizer.param_groups])
        torch.testing.assert_close(rates / rates.max(), torch.tensor([1.0, 1.0, 0.5, 0.5]))
