"""Packed sequences: boundaries, intervals, attention, vectors before them, rows that grow.

    B phrases or rows   N packed tokens of all phrases   T tokens of a row   D model width
    P vectors before a phrase   H heads   d width of a head (D / H)

The phrases of a batch lie end to end; ``cu_seqlens``, int32 (B + 1,), holds their boundaries on
the device and ``lengths`` their lengths as Python numbers, each at least 1. Positions start at 0 in
every phrase, so that a phrase's vectors do not depend on its batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad, scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:  # it imports this file
    from midigenre.models.transformer import Attend, Encoder


def segments_N(cu_seqlens: Tensor, N: int) -> Tensor:
    """Phrase of each token, int64 (N,). N as a Python number saves waiting for the device."""
    phrases = torch.arange(len(cu_seqlens) - 1, device=cu_seqlens.device)
    return torch.repeat_interleave(phrases, cu_seqlens.diff(), output_size=N)


def positions_N(cu_seqlens: Tensor, N: int) -> Tensor:
    """Position of each token in its phrase, from 0, int64 (N,)."""
    starts_N = cu_seqlens[:-1].long()[segments_N(cu_seqlens, N)]
    return torch.arange(N, device=cu_seqlens.device) - starts_N


LARGEST_INTERVAL = 36
"""Semitones; larger ones count as this one."""
INTERVAL_STD = 0.2
NO_BASS = 1000  # above every pitch


class Intervals(nn.Module):
    """Vectors of each note's intervals, which tell music in any key.

    The *melodic* interval is that from the note before; the *harmonic* interval is that above the
    bass, the lowest note of the same onset. Each has a table, drawn with a larger standard
    deviation than the fields: the intervals are then learned first (experiments/08_peers).

    Args:
        pitches: Pitch of each id of each field, -1 for an id without one (``TokenSpec.pitches``).
        times: Whether each id of each field says a time (``TokenSpec.times``). Where such an id is
            not that of the token before, an onset begins, as with each phrase.
        d_model: Model width D.

    Raises:
        ValueError: The vocabulary has no pitches or no times.
    """

    def __init__(
        self, pitches: Sequence[Sequence[int]], times: Sequence[Sequence[bool]], d_model: int
    ) -> None:
        super().__init__()
        self.field = max(range(len(pitches)), key=lambda field: max(pitches[field]))
        self.timed = [field for field, of in enumerate(times) if any(of)]
        if max(pitches[self.field]) < 0 or not self.timed:
            raise ValueError(
                "the tokenizer has no tokens of pitch (Pitch, NoteOn) or none of time (Bar, "
                "Position, TimeShift), so there are no intervals; set model.intervals=false"
            )
        # A token without an interval stays its fields' vector: row 0 is zeros and not learned.
        self.melodic = nn.Embedding(2 * LARGEST_INTERVAL + 2, d_model, padding_idx=0)
        self.harmonic = nn.Embedding(LARGEST_INTERVAL + 2, d_model, padding_idx=0)
        for table in (self.melodic, self.harmonic):
            nn.init.normal_(table.weight, std=INTERVAL_STD)
            nn.init.zeros_(table.weight[0])
        self.pitch_V = nn.Buffer(torch.tensor(pitches[self.field]), persistent=False)
        saying = [torch.tensor(times[field]) for field in self.timed]
        self.time_VT = nn.Buffer(pad_sequence(saying), persistent=False)

    def forward(self, ids_NF: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Token ids, int64 (N, F), with boundaries, (B + 1,), to vectors, (N, D)."""
        melodic_N, harmonic_N = self.of(ids_NF, cu_seqlens)
        return cast(Tensor, self.melodic(melodic_N) + self.harmonic(harmonic_N))

    def of(self, ids_NF: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
        """Melodic and harmonic intervals as rows of their tables, int64 (N,); 0 for none.

        A melodic one of i semitones up is ``i + LARGEST_INTERVAL + 1``, and missing on a phrase's
        first note; a harmonic one is ``i + 1``.
        """
        N, pitch_N = len(ids_NF), self.pitch_V[ids_NF[:, self.field]]
        at_N, is_note_N = torch.arange(N, device=ids_NF.device), pitch_N >= 0
        phrase_at_N = at_N - positions_N(cu_seqlens, N)
        last_N = torch.where(is_note_N, at_N, -1).cummax(0).values
        before_N = torch.cat((last_N.new_full((1,), -1), last_N))[:N]
        up_N = (pitch_N - pitch_N[before_N.clamp_min(0)]).clamp(-LARGEST_INTERVAL, LARGEST_INTERVAL)
        melodic_N = torch.where(
            is_note_N & (before_N >= phrase_at_N), up_N + LARGEST_INTERVAL + 1, 0
        )
        time_NT = ids_NF[:, self.timed]
        said_NT = self.time_VT[time_NT, torch.arange(len(self.timed), device=ids_NF.device)]
        begins_N = (at_N == phrase_at_N) | (said_NT & (time_NT != time_NT.roll(1, 0))).any(1)
        onset_N = begins_N.cumsum(0) - 1
        # As many places as tokens: how many onsets there are, only the device knows.
        bass_N = pitch_N.new_full((N,), NO_BASS).scatter_reduce(
            0, onset_N, torch.where(is_note_N, pitch_N, NO_BASS), "amin"
        )[onset_N]
        above_N = (pitch_N - bass_N).clamp_max(LARGEST_INTERVAL)
        return melodic_N, torch.where(is_note_N, above_N + 1, 0)


class Prefixed(NamedTuple):
    """A packed sequence with P vectors before each phrase: M = N + B * P vectors in all.

    Attributes:
        h_MD: Vectors, shape (M, D).
        cu_seqlens: New boundaries, shape (B + 1,), same type as before.
        lengths: New lengths, each P longer.
        tokens_N: Where the tokens went, int64, shape (N,): ``h_MD[tokens_N]`` drops the prefixes.
    """

    h_MD: Tensor
    cu_seqlens: Tensor
    lengths: tuple[int, ...]
    tokens_N: Tensor


def insert_prefix(
    h_ND: Tensor, cu_seqlens: Tensor, lengths: Sequence[int], prefix_BPD: Tensor
) -> Prefixed:
    """Puts P vectors before each phrase: CLS, and the generator's conditions.

    They are vectors of the model and not tokens, so that vocabularies know nothing of them. Expand
    one vector, shape (D,), to ``prefix_BPD``, (B, P, D), where all phrases share it.
    """
    (N, D), (B, P), device = h_ND.shape, prefix_BPD.shape[:2], h_ND.device
    tokens_N = torch.arange(N, device=device) + (segments_N(cu_seqlens, N) + 1) * P
    # Each phrase moves by the prefixes of all phrases before it.
    moved = cu_seqlens + P * torch.arange(B + 1, device=device, dtype=cu_seqlens.dtype)
    prefix_BP = moved[:-1, None].long() + torch.arange(P, device=device)
    h_MD = h_ND.new_empty(N + B * P, D).index_copy(0, tokens_N, h_ND)
    h_MD = h_MD.index_copy(0, prefix_BP.flatten(), prefix_BPD.flatten(0, 1).to(h_ND.dtype))
    return Prefixed(h_MD, moved, tuple(n + P for n in lengths), tokens_N)


# --- attention ------------------------------------------------------------------------------------


def packed_attention(
    q_NHd: Tensor, k_NHd: Tensor, v_NHd: Tensor, cu_seqlens: Tensor, lengths: Sequence[int], *,
    causal: bool, dropout_p: float = 0.0,
) -> Tensor:  # fmt: skip
    """Scaled dot-product attention of every phrase with itself (Vaswani et al. 2017, section 3.2).

    Three implementations: :func:`attend_runs` on CPU; :func:`attend_varlen` on CUDA in half
    precision; :func:`attend_padded` for the rest (float32 or attention dropout on CUDA, GPUs before
    Ampere).

    Args:
        q_NHd: Queries of all phrases end to end, shape (N, H, d).
        k_NHd: Keys, same shape.
        v_NHd: Values, same shape.
        cu_seqlens: Phrase boundaries, on the device of ``q_NHd``.
        lengths: The phrase lengths.
        causal: Whether a token sees only itself and those before it.
        dropout_p: Dropout of the attention weights; 0 outside training. Anything else rules the
            fast kernels out.

    Returns:
        Shape (N, H, d).
    """
    qkv = q_NHd, k_NHd, v_NHd
    if q_NHd.device.type == "cpu":
        return attend_runs(*qkv, lengths, causal=causal, dropout_p=dropout_p)
    if dropout_p == 0.0 and _varlen_runs_on(q_NHd):
        return attend_varlen(*qkv, cu_seqlens=cu_seqlens, longest=max(lengths), causal=causal)
    return attend_padded(*qkv, cu_seqlens, lengths, causal=causal, dropout_p=dropout_p)


def attend_runs(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], *, causal: bool, dropout_p: float = 0.0
) -> Tensor:
    """A loop of SDPA calls, one for each run of equally long neighbours, on views."""
    runs = [(length, len(tuple(same))) for length, same in groupby(lengths)]
    sizes = [length * count for length, count in runs]
    # Split, not slice: the backward of many slices writes as many full-size zero tensors.
    parts = [torch.split(x.transpose(0, 1), sizes, dim=1) for x in (q, k, v)]
    outs = []
    for (length, count), *qkv in zip(runs, *parts, strict=True):
        # (H, count * length, d) to (count, H, length, d); the usual 1 is a view fewer.
        qkv = [
            x[None] if count == 1 else x.unflatten(1, (count, length)).transpose(0, 1) for x in qkv
        ]
        out = scaled_dot_product_attention(
            qkv[0], qkv[1], qkv[2], dropout_p=dropout_p, is_causal=causal
        )
        outs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outs)


def attend_varlen(
    q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens: Tensor, longest: int, causal: bool
) -> Tensor:
    """Variable-length flash attention (Dao 2023, arXiv 2307.08691); d must be a multiple of 8.

    ``longest`` is the length of the longest phrase, or more.
    """
    from torch.nn.attention.varlen import varlen_attn

    # (left, right) tokens that a query sees: -1 is all, 0 on the right is causal.
    window = (-1, 0) if causal else (-1, -1)
    out = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest, window_size=window)
    assert isinstance(out, Tensor)  # A pair only where auxiliary outputs were asked for.
    return out


def attend_padded(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, lengths: Sequence[int], *,
    causal: bool, dropout_p: float = 0.0,
) -> Tensor:  # fmt: skip
    """SDPA on a copy padded to the longest phrase; the padding is dropped again."""
    (N, H, d), B, L = q.shape, len(lengths), max(lengths)
    slot_N = segments_N(cu_seqlens, N) * L + positions_N(cu_seqlens, N)

    def pad(x_NHd: Tensor) -> Tensor:
        # Zeros, not a neighbour's tokens: a masked weight is 0, but 0 times infinity is not.
        x = x_NHd.new_zeros(B * L, H, d).index_copy(0, slot_N, x_NHd)
        return x.view(B, L, H, d).transpose(1, 2)

    # Padding follows its phrase, so the causal mask alone hides it from every real token,
    # and SDPA keeps its fast kernels.
    steps = torch.arange(L, device=q.device)
    mask = None if causal else (steps < cu_seqlens.diff()[:, None])[:, None, None, :]
    out_BHLd = scaled_dot_product_attention(
        pad(q), pad(k), pad(v), attn_mask=mask, dropout_p=dropout_p, is_causal=causal
    )
    return out_BHLd.transpose(1, 2).reshape(B * L, H, d).index_select(0, slot_N)


def no_varlen(d_head: int, capability: tuple[int, int]) -> str | None:
    """Why variable-length flash attention cannot run on a GPU; None where it can.

    Args:
        d_head: Width of a head; unlike SDPA, varlen does not pad it.
        capability: Compute capability of the GPU, as ``torch.cuda.get_device_capability`` says it.
    """
    if capability < (8, 0):
        has = ".".join(map(str, capability))
        return f"an Ampere GPU or a later one (compute capability 8.0; this one has {has})"
    if d_head % 8 or d_head > 256:
        return f"heads of 8, 16, ... 256 numbers (these have {d_head})"
    return None


def _varlen_runs_on(q_NHd: Tensor) -> bool:
    """Whether flash attention takes this tensor; it knows no float32."""
    return (
        q_NHd.device.type == "cuda"
        and q_NHd.dtype in (torch.bfloat16, torch.float16)
        and no_varlen(q_NHd.shape[-1], torch.cuda.get_device_capability(q_NHd.device)) is None
    )


# --- rows that grow token by token ----------------------------------------------------------------


class DecodingState(ABC):
    """The state of B rows, which may differ in length, with which one more token is cheap.

    Args:
        capacity: Tokens that a row may have, vectors put before it included.
        tensors: The backbone's tensors by name; rows lie along the second axis.

    Attributes:
        lengths: Tokens of each row so far, on the host.
        lengths_B: The same on the device, int64.
    """

    def __init__(self, capacity: int, tensors: Mapping[str, Tensor]) -> None:
        first = next(iter(tensors.values()))
        if capacity < 1 or first.shape[1] < 1:
            raise ValueError(f"n_rows={first.shape[1]} and capacity={capacity} must be 1 or more")
        self.capacity, self.tensors = capacity, dict(tensors)
        self.lengths = [0] * first.shape[1]
        self.lengths_B = torch.tensor(self.lengths, device=first.device)

    def __len__(self) -> int:
        return len(self.lengths)

    def reset(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Sets how long some rows are; a ValueError where one does not fit."""
        if max(lengths) > self.capacity:
            raise ValueError(f"{max(lengths)} steps do not fit a capacity of {self.capacity}")
        for row, length in zip(rows, lengths, strict=True):
            self.lengths[row] = length
        self.lengths_B = torch.tensor(self.lengths, device=self.lengths_B.device)

    def grow(self) -> None:
        """Makes every row one token longer; a ValueError where a row is full."""
        self.reset(range(len(self)), [length + 1 for length in self.lengths])

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps these rows, in this order, and drops the others."""
        at = torch.tensor(rows, dtype=torch.int64, device=self.lengths_B.device)
        self.tensors = {name: x.index_select(1, at) for name, x in self.tensors.items()}
        self.lengths = [self.lengths[row] for row in rows]
        self.lengths_B = torch.tensor(self.lengths, device=self.lengths_B.device)

    @abstractmethod
    def prefill(
        self, h_ND: Tensor, cu_seqlens: Tensor, lengths: Sequence[int], rows: Sequence[int]
    ) -> Tensor:
        """The causal pass over whole phrases, (N, D) to (N, D), with which ``rows`` begin again.

        The other rows stay as they are. A ValueError where a phrase passes the capacity.
        """

    @abstractmethod
    def step(self, h_BD: Tensor) -> Tensor:
        """One further token of every row, (B, D) to (B, D): the full causal pass at its last token.

        A ValueError where a row is full.
        """


class KeyValueState(DecodingState):
    """Rows of an encoder: keys and values of every layer, in preallocated memory.

    Args:
        encoder: The encoder, in evaluation mode.
        n_rows: Number of rows B.
        capacity: Tokens that a row may have, vectors put before it included.
        device: Device of the rows.
        dtype: Type of the model's vectors.

    Raises:
        ValueError: ``capacity`` passes ``max_positions`` of learned positions.
    """

    def __init__(
        self, encoder: Encoder, n_rows: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        if encoder.positions is not None:
            limit = encoder.positions.table.num_embeddings
            if capacity > limit:
                raise ValueError(f"a capacity of {capacity} does not fit max_positions={limit}")
        heads, layers = encoder.d_model // encoder.d_head, len(encoder.layers)
        # Keys are turned by their positions already; what follows a row is never read.
        cache = (layers, n_rows, heads, capacity, encoder.d_head)
        shapes: dict[str, tuple[int, ...]] = {"k": cache, "v": cache}
        if encoder.local is not None:  # normed vectors of the last tokens, the last first
            shapes["before"] = (encoder.local.width - 1, n_rows, encoder.d_model)
        # Zeros, not what lay in memory: a masked weight is 0, but 0 times infinity is not.
        zeros = {k: torch.zeros(shape, device=device, dtype=dtype) for k, shape in shapes.items()}
        super().__init__(capacity, zeros)
        self.encoder = encoder

    def prefill(
        self, h_ND: Tensor, cu_seqlens: Tensor, lengths: Sequence[int], rows: Sequence[int]
    ) -> Tensor:
        """See :meth:`DecodingState.prefill`."""
        self.reset(rows, lengths)
        positions = positions_N(cu_seqlens, len(h_ND))
        if (local := self.encoder.local) is not None:
            for row, x_TD in zip(rows, torch.split(local.norm(h_ND), list(lengths)), strict=True):
                last = x_TD.flip(0)[: local.width - 1]  # zeros before the start of a phrase
                self.tensors["before"][:, row] = pad(last, (0, 0, 0, local.width - 1 - len(last)))
            h_ND = local(h_ND, positions)
        h_ND, rotary = self.encoder.place(h_ND, positions, max(lengths))

        def attend_and_fill(q: Tensor, k: Tensor, v: Tensor, *, layer: int) -> Tensor:
            for name, packed in (("k", k), ("v", v)):
                for row, x_THd in zip(rows, torch.split(packed, list(lengths)), strict=True):
                    self.tensors[name][layer, row, :, : len(x_THd)] = x_THd.transpose(0, 1)
            return packed_attention(q, k, v, cu_seqlens, lengths, causal=True)

        fills = (partial(attend_and_fill, layer=i) for i in range(len(self.encoder.layers)))
        return self.encoder.run_layers(h_ND, rotary, fills)

    def step(self, h_BD: Tensor) -> Tensor:
        """See :meth:`DecodingState.step`."""
        self.grow()
        if (local := self.encoder.local) is not None:
            seen_KBD = torch.cat([local.norm(h_BD)[None], self.tensors["before"]])
            h_BD = local.add(h_BD, gelu(local.project(seen_KBD.transpose(0, 1).flatten(1))))
            self.tensors["before"] = seen_KBD[: local.width - 1]
        h_BD, rotary = self.encoder.place(h_BD, self.lengths_B - 1, max(self.lengths))
        return self.encoder.run_layers(h_BD, rotary, self._attends())

    def _attends(self) -> Iterator[Attend]:
        """For one layer after the other: writes keys and values of a token, attends to its row."""
        longest, at_B, mask = max(self.lengths), None, None
        if min(self.lengths) < longest:
            at_B = self.lengths_B - 1
            seen = torch.arange(longest, device=at_B.device) <= at_B[:, None]
            # Added to the scores of every layer; a bool mask would be turned into this each time.
            mask = torch.zeros(seen.shape, device=at_B.device, dtype=self.tensors["k"].dtype)
            mask = mask.masked_fill_(~seen, -torch.inf)[:, None, None]

        def attend(
            q_BHd: Tensor, k_BHd: Tensor, v_BHd: Tensor, *, k_BHTd: Tensor, v_BHTd: Tensor
        ) -> Tensor:
            if at_B is None:  # the same place in every row
                k_BHTd[:, :, longest - 1], v_BHTd[:, :, longest - 1] = k_BHd, v_BHd
            else:
                rows = torch.arange(len(at_B), device=at_B.device)
                k_BHTd[rows, :, at_B], v_BHTd[rows, :, at_B] = k_BHd, v_BHd
            out_BH1d = scaled_dot_product_attention(
                q_BHd[:, :, None], k_BHTd[:, :, :longest], v_BHTd[:, :, :longest], attn_mask=mask
            )
            return out_BH1d[:, :, 0]

        for k_BHTd, v_BHTd in zip(self.tensors["k"], self.tensors["v"], strict=True):
            yield partial(attend, k_BHTd=k_BHTd, v_BHTd=v_BHTd)
