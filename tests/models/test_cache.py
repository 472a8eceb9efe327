"""Decoding step by step equals the full causal pass."""

from __future__ import annotations

import pytest
import torch
from packing import boundaries, make_batch, packed
from test_generator import BACKBONES, generator
from torch import Tensor

from midigenre.models import LSTM, Encoder
from midigenre.spec import UNKNOWN

MODELS = {
    f"{norm}-{positions}-{activation}-{width}": lambda n=norm, p=positions, a=activation, w=width: (
        Encoder(16, 2, 4, 24, n, p, a, dropout=0.2, attention_dropout=0.1, conv_width=w)
    )
    for norm, positions, activation, width in (
        ("pre", "rope", "gelu", 0),
        ("pre", "rope", "geglu", 3),
        ("pre", "learned", "gelu", 1),
        ("post", "rope", "geglu", 0),
        ("post", "learned", "gelu", 4),
    )
} | {
    "extra norm": lambda: Encoder(16, 2, 4, 24, "pre", dropout=0.2, extra_norm=True),
    "lstm": lambda: LSTM(16, 2, dropout=0.2),
}


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def backbone(request: pytest.FixtureRequest) -> Encoder:
    torch.manual_seed(0)
    return request.param().double().eval()


def empty(backbone: Encoder, n_rows: int, capacity: int = 30):
    return backbone.new_state(n_rows, capacity, torch.device("cpu"), torch.float64)


def rows_of(*lengths: int, seed: int = 0) -> list[Tensor]:
    return list(packed(lengths, 16, seed=seed)[0].split(list(lengths)))


def full(backbone: Encoder, row: Tensor) -> Tensor:
    return backbone(row, boundaries([len(row)]), [len(row)], causal=True)


def prefill(rows: list[Tensor], state, which: list[int]) -> Tensor:
    lengths = [len(row) for row in rows]
    return state.prefill(torch.cat(rows), boundaries(lengths), lengths, which)


@torch.no_grad()
def test_steps_from_nothing_equal_the_full_pass(backbone: Encoder) -> None:
    rows = rows_of(9, 9, 9)
    state = empty(backbone, 3)
    out = torch.stack([state.step(torch.stack(h)) for h in zip(*rows, strict=True)], 1)
    for row, found in zip(rows, out, strict=True):
        torch.testing.assert_close(found, full(backbone, row))


@torch.no_grad()
def test_ragged_rows_continue_from_where_they_are(backbone: Encoder) -> None:
    rows = rows_of(9, 12, 7, 8)
    heads = [3, 6, 1, 2]
    state = empty(backbone, 4, 12)
    out = prefill([r[:n] for r, n in zip(rows, heads, strict=True)], state, [0, 1, 2, 3])
    torch.testing.assert_close(
        out, torch.cat([full(backbone, r)[:n] for r, n in zip(rows, heads, strict=True)])
    )
    for t in range(6):
        h_BD = torch.stack([r[n + t] for r, n in zip(rows, heads, strict=True)])
        out = state.step(h_BD)
        for row, n, found in zip(rows, heads, out, strict=True):
            torch.testing.assert_close(found, full(backbone, row)[n + t])
    assert state.lengths == state.lengths_B.tolist() == [9, 12, 7, 8]
    with pytest.raises(ValueError, match="13 steps do not fit a capacity of 12"):
        state.step(h_BD)


@torch.no_grad()
def test_rows_leave_and_begin_again_beside_others(backbone: Encoder) -> None:
    rows = rows_of(20, 20, 20)
    state = empty(backbone, 3)
    prefill([r[:4] for r in rows], state, [0, 1, 2])
    state.keep([2, 0])  # row 1 leaves, the others change places
    for t in range(4, 7):
        state.step(torch.stack([rows[2][t], rows[0][t]]))
    # A window slides: the row in front begins again with its last five steps.
    window = rows[2][2:]
    again = prefill([window[:5]], state, [0])
    torch.testing.assert_close(again, full(backbone, window)[:5])
    for t in range(4):
        out = state.step(torch.stack([window[5 + t], rows[0][7 + t]]))
        torch.testing.assert_close(out[0], full(backbone, window)[5 + t])
        torch.testing.assert_close(out[1], full(backbone, rows[0])[7 + t])


@torch.no_grad()
def test_what_is_behind_a_row_is_never_read() -> None:
    """A long row leaves its keys in the cache; the short one that takes its place is deaf to them.

    Not for rows of zeros alone: infinities in the room left over must not become NaN either.
    """
    torch.manual_seed(0)
    backbone = Encoder(16, 1, 2, 24, dropout=0.0).double().eval()
    state = empty(backbone, 2, 12)
    long = rows_of(12, 12)
    prefill(long, state, [0, 1])
    short = rows_of(2, 6, seed=1)
    prefill(short, state, [0, 1])
    more = rows_of(2, seed=2)[0]
    out = state.step(more)
    for row, last, found in zip(short, more, out, strict=True):
        torch.testing.assert_close(found, full(backbone, torch.cat([row, last[None]]))[-1])


def test_float32_is_within_a_hundred_thousandth() -> None:
    torch.manual_seed(0)
    backbone = Encoder(64, 4, 4, 128, dropout=0.0).eval()
    rows = [row.float() for row in list(packed((40, 33), 64)[0].split([40, 33]))]
    state = backbone.new_state(2, 64, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        prefill([rows[0][:10], rows[1][:3]], state, [0, 1])
        for t in range(30):
            out = state.step(torch.stack([rows[0][10 + t], rows[1][3 + t]]))
        assert (out[0] - full(backbone, rows[0])[-1]).abs().max() < 1e-5
        assert (out[1] - full(backbone, rows[1])[-1]).abs().max() < 1e-5


def test_room_beyond_learned_positions_is_refused() -> None:
    backbone = Encoder(16, 1, 2, 24, positions="learned", max_positions=8)
    with pytest.raises(ValueError, match="capacity of 9 does not fit max_positions=8"):
        backbone.new_state(1, 9, torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match="needs one direction"):
        LSTM(16, 1, bidirectional=True).new_state(1, 9, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("by", ["prefix", "add"])
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("sizes", [(11,), (11, 7, 5)], ids=["one field", "three fields"])
@torch.no_grad()
def test_a_generator_says_the_same_step_by_step(
    sizes: tuple[int, ...], backbone: str, by: str
) -> None:
    model = generator(sizes, backbone, by)
    whole = make_batch([8, 8, 8], sizes, [2, UNKNOWN, 0])
    expected = model(whole).unflatten(0, (3, 8))
    ids_BTF = whole.ids_NF.unflatten(0, (3, 8))
    heads = [0, 5, 2]  # one row from nothing, two behind a prime
    h_BD, rows = model.begin(
        whole.labels, [row[:n] for row, n in zip(ids_BTF, heads, strict=True)], 8
    )
    for t in range(3):
        for row, n in enumerate(heads):
            torch.testing.assert_close(h_BD[row], expected[row, n + t])
        h_BD = model.advance(torch.stack([ids_BTF[r, n + t] for r, n in enumerate(heads)]), rows)
    rows.keep([2, 0])
    # Conditions stay with their row when it leaves its place and begins again.
    again = model.restart([1], [ids_BTF[0, :2]], rows)
    torch.testing.assert_close(again[0], expected[0, 2])
    h_BD = model.advance(torch.stack([ids_BTF[2, 5], ids_BTF[0, 2]]), rows)
    torch.testing.assert_close(h_BD, torch.stack([expected[2, 6], expected[0, 3]]))
    rows.keep([1])
    for t in range(3, 8):
        torch.testing.assert_close(h_BD[-1], expected[0, t])
        h_BD = model.advance(ids_BTF[0, t : t + 1], rows)
    with pytest.raises(ValueError, match="capacity"):
        model.advance(ids_BTF[0, 7:8], rows)
