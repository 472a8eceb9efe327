"""Tokens are drawn from the filtered distribution, and from nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from midigenre.errors import UserError
from midigenre.generation.sampling import Choice

LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()


def shares(choice: Choice, allowed: list[bool] | None = None, n: int = 20_000) -> list[float]:
    """Share of each token over evenly spread numbers: the exact distribution."""
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    mask = torch.tensor([allowed or [True] * 4]).expand(n, -1)
    ids = choice(LOGITS.expand(n, -1), mask, uniform)
    return (torch.bincount(ids, minlength=4) / n).tolist()


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice(), [0.5, 0.3, 0.15, 0.05]),
        (Choice(temperature=0), [1, 0, 0, 0]),
        (Choice(temperature=0.5), np.array([0.25, 0.09, 0.0225, 0.0025]) / 0.365),
        (Choice(top_k=2), [0.625, 0.375, 0, 0]),
        (Choice(top_k=9), [0.5, 0.3, 0.15, 0.05]),
        (Choice(top_p=0.5), [1, 0, 0, 0]),
        (Choice(top_p=0.51), [0.625, 0.375, 0, 0]),
        (Choice(top_p=1e-9), [1, 0, 0, 0]),
        (Choice(min_p=0.25), np.array([0.5, 0.3, 0.15, 0]) / 0.95),
        (Choice(min_p=1), [1, 0, 0, 0]),
    ],
)
def test_filters_leave_the_stated_distribution(choice, expected):
    assert shares(choice) == pytest.approx(list(expected), abs=1e-3)


def test_what_is_not_allowed_is_not_drawn_and_filters_count_the_rest():
    assert shares(Choice(), [False, True, True, False]) == pytest.approx(
        [0, 2 / 3, 1 / 3, 0], abs=1e-3
    )
    assert shares(Choice(top_k=1), [False, False, True, True]) == [0, 0, 1, 0]
    assert shares(Choice(temperature=0), [False, False, True, True]) == [0, 0, 1, 0]


@given(
    st.integers(0, 2**31),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 3),
    st.integers(0, 6),
    st.floats(0.01, 1),
    st.floats(0, 1),
)
def test_every_draw_is_allowed(seed, u, temperature, top_k, top_p, min_p):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 5, generator=random) * 30
    allowed = torch.rand(3, 5, generator=random) < 0.5
    allowed[torch.arange(3), torch.randint(5, (3,), generator=random)] = True
    choice = Choice(temperature, top_k, top_p, min_p)
    ids = choice(logits, allowed, torch.full((3,), u, dtype=torch.float64))
    assert allowed[torch.arange(3), ids].all()


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1), ("top_k", -1), ("top_p", 0), ("top_p", 1.1), ("min_p", 2)],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Choice(**{name: value})


def test_broken_weights_are_refused():
    with pytest.raises(UserError, match="not finite"):
        Choice()(torch.full((1, 2), torch.nan), torch.ones(1, 2).bool(), torch.zeros(1).double())
