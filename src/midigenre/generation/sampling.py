"""Samples music from a generator, step by step, within its tokenizer's grammar.

B rows   T steps   F fields of a step   D model width   V vocabulary of a field
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from midigenre.arrays import Longs
from midigenre.errors import RejectedSongError, UserError
from midigenre.generation.grammar import Grammar, Rows
from midigenre.models import PhraseGenerator
from midigenre.models.kernels import packed
from midigenre.spec import UNKNOWN
from midigenre.tokenizers.base import phrase_cutter


@dataclass(frozen=True)
class Choice:
    """How a token is sampled; the filters apply to each field of a step, in this order.

    Attributes:
        temperature: Logits are divided by it; 0 takes the likeliest token.
        top_k: Only the k likeliest tokens (Fan et al. 2018, arXiv 1805.04833, section 5.3); 0 for
            all.
        top_p: Only the likeliest tokens that together have this probability, at least one (nucleus
            sampling, Holtzman et al. 2020, arXiv 1904.09751, section 3.1).
        min_p: Only tokens at least this share as likely as the likeliest (Nguyen et al. 2024,
            arXiv 2407.01082, section 3).

    Raises:
        ValueError: A value that makes no sense.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        most = {"temperature": 100, "top_k": 2**31, "top_p": 1, "min_p": 1}
        for name, high in most.items():
            value = getattr(self, name)
            if not 0 <= value <= high or (name == "top_p" and value == 0):
                least = "more than 0" if name == "top_p" else "0 or more"
                raise ValueError(f"{name}={value} must be {least}, and at most {high}")

    def __call__(self, logits_BV: Tensor, allowed_BV: Tensor, uniform_B: Tensor) -> Tensor:
        """Draws a token of each row.

        Args:
            logits_BV: Logits.
            allowed_BV: What may be drawn, at least one token per row.
            uniform_B: Numbers in [0, 1), float64: the same number draws the same token.

        Returns:
            Ids, int64 (B,).

        Raises:
            UserError: The logits of a row are not numbers.
        """
        x_BV = logits_BV.double().masked_fill(~allowed_BV, -torch.inf)
        best_B1 = x_BV.amax(-1, keepdim=True)
        if not best_B1.isfinite().all():
            raise UserError(
                "the model's logits are not finite, so its weights are broken; take another "
                "checkpoint (ckpt=last, ckpt=PATH) or train with a lower optim.lr"
            )
        if self.temperature == 0:
            return x_BV.argmax(-1)
        x_BV = (x_BV - best_B1) / self.temperature
        if 0 < self.top_k < x_BV.shape[-1]:
            x_BV = x_BV.masked_fill(x_BV < x_BV.topk(self.top_k).values[:, -1:], -torch.inf)
        if self.top_p < 1:
            sorted_BV, order_BV = x_BV.sort(descending=True)
            p_BV = sorted_BV.softmax(-1)
            # A token stays as long as those before it have not reached top_p.
            out_BV = p_BV.cumsum(-1) - p_BV >= self.top_p
            out_BV[:, 0] = False
            x_BV = x_BV.masked_fill(out_BV.scatter(1, order_BV, out_BV), -torch.inf)
        p_BV = x_BV.softmax(-1)
        if self.min_p > 0:
            p_BV = p_BV.masked_fill(p_BV < self.min_p * p_BV.amax(-1, keepdim=True), 0.0)
        upto_BV = p_BV.cumsum(-1)
        # Below the sum whatever the rounding; "right" never lands on a token of probability 0.
        at_B1 = uniform_B[:, None].clamp(max=1 - 1e-12) * upto_BV[:, -1:]
        return torch.searchsorted(upto_BV, at_B1, right=True)[:, 0]


@dataclass(frozen=True)
class SamplingSettings:
    """How pieces are drawn and when they end.

    Attributes:
        choice: How a token is drawn.
        guidance: Scale of classifier-free guidance: logits are ``u + guidance * (c - u)``, c
            with the condition and u without (Ho and Salimans 2022, arXiv 2207.12598, equation 6,
            whose w is ``guidance - 1``). 1 is the model as it is, at half the cost.
        seed: Piece i of a seed is the same whatever is drawn with it.
        bars: The piece has exactly this many bars (a primer's come on top); None: until the end
            token.
        seconds: The piece ends with the bar in which this time is reached, the primer's included;
            None for no bound.
        tokens: Most steps, the primer's included, but for those that end sounding notes; None for
            no bound.

    Raises:
        ValueError: A value that makes no sense.
    """

    choice: Choice = field(default_factory=Choice)
    guidance: float = 1.0
    seed: int = 0
    bars: int | None = 16
    seconds: float | None = None
    tokens: int | None = 8192

    def __post_init__(self) -> None:
        ends = {name: getattr(self, name) for name in ("bars", "seconds", "tokens")}
        for name, value in ends.items():
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} must be more than 0")
        if self.seed < 0 or not np.isfinite(self.guidance):
            raise ValueError(f"seed={self.seed}, guidance={self.guidance}: out of range")
        if all(value is None for value in ends.values()):
            raise ValueError("bars, seconds and tokens are all null: a piece might never end")


@dataclass(frozen=True)
class Context:
    """The longest window that a model was trained on: steps and bars."""

    max_tokens: int
    bars: int


@dataclass(frozen=True)
class Sample:
    """One piece.

    Attributes:
        ids_TF: Its steps with BOS, int64 (T, F); bars are numbered from its beginning.
        stop: ``end`` (the end token), ``bars``, ``seconds``, ``tokens``, or ``context`` (a bar
            became longer than the model's window).
        n_drawn: Steps that were drawn; the others are the primer's.
        n_bars: Its finished bars, the primer's and empty ones at its end too; one that was cut
            (``tokens``, ``context``) has begun another one.
    """

    ids_TF: Longs
    stop: str
    n_drawn: int
    n_bars: int


@dataclass
class _Piece:
    """A piece in the making."""

    ids: list[list[int]]  # its steps
    uniform: np.random.Generator
    first: int = 0  # the bar with which its window begins
    bars: int = 0  # finished ones
    bars_timed: int = 0  # those known not to reach `seconds`
    stop: str = ""


class Sampler:
    """Draws pieces.

    Args:
        model: The generator, in evaluation mode.
        grammar: The grammar of its tokenizer.
        context: The windows that it was trained on.

    Raises:
        ValueError: The model predicts the fields in another order than the grammar's.
    """

    def __init__(self, model: PhraseGenerator, grammar: Grammar, context: Context) -> None:
        if model.head.order != grammar.order:
            raise ValueError(
                f"the model predicts fields in the order {model.head.order}, the grammar has "
                f"{grammar.order}"
            )
        self.model = model
        self.grammar = grammar
        self.windows = Windows(grammar, context)

    @torch.inference_mode()
    def sample(
        self,
        labels: Mapping[str, Sequence[int]],
        settings: SamplingSettings,
        *,
        n: int,
        first: int = 0,
        primer: Longs | None = None,
        primer_bars: int = 0,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Sample]:
        """Draws n pieces side by side.

        Args:
            labels: Class index of each piece for each condition, length n; ``UNKNOWN`` is one.
            settings: How they are drawn.
            n: Number of pieces.
            first: Number of the first piece under the seed, for sampling in batches.
            primer: Steps that all begin with, int64 (T, F), without BOS; bars from 0.
            primer_bars: Bars of it.
            report: Called with the bars that are finished, and all; 0 for an unknown number.

        Raises:
            ValueError: The primer is not valid music of this tokenizer.
        """
        bos = self.grammar.tokenizer.spec.special("BOS")
        assert bos is not None  # the grammar supports no vocabulary without BOS
        opening = np.array([bos], np.int64)
        if primer is not None:
            opening = np.concatenate([opening, primer])
        pieces = [
            _Piece(opening.tolist(), np.random.default_rng([settings.seed, first + i]))
            for i in range(n)
        ]
        draw = _Draw(self, labels, settings, pieces, opening, primer_bars)
        total = n * (settings.bars + primer_bars) if settings.bars else 0
        while draw.live:
            chosen_BF = draw.choose()
            draw.push(chosen_BF)
            report(sum(piece.bars for piece in pieces), total)
            draw.advance(chosen_BF)
        return [
            Sample(np.array(p.ids, np.int64), p.stop, max(0, len(p.ids) - len(opening)), p.bars)
            for p in pieces
        ]


class _Draw:
    """The rows of one call of :meth:`Sampler.sample`, a row for each piece that has not ended."""

    def __init__(
        self,
        sampler: Sampler,
        labels: Mapping[str, Sequence[int]],
        settings: SamplingSettings,
        pieces: Sequence[_Piece],
        opening: Longs,
        primer_bars: int,
    ) -> None:
        # Guidance runs every row a second time, without its condition.
        self.copies = 1 if settings.guidance == 1 or not labels else 2
        # Packed for each call: a model that is being trained is sampled too.
        self.model = packed(sampler.model, len(pieces) * self.copies)
        self.windows, self.settings, self.live = sampler.windows, settings, list(pieces)
        self.grammar, self.tokenizer = sampler.grammar, sampler.grammar.tokenizer
        self.device = self.model.start_D.device
        self.max_bars = None if settings.bars is None else settings.bars + primer_bars
        self.rows: Rows = self.grammar.start(len(pieces), max_bars=self.max_bars)
        windows = []
        for row in range(len(pieces)):
            self.rows.feed(row, opening)
            self.rows.seal(row, primer_bars)
            begins = self.windows.first_bar(self.rows, row, 0, self.max_bars)
            window = self._window(row, begins)
            if window is None:
                raise ValueError(
                    "the last bars of the primer do not fit the model's "
                    f"{self.windows.max_tokens} steps"
                )
            windows.append(torch.from_numpy(window))
        conditions = {k: torch.tensor(list(v), device=self.device) for k, v in labels.items()}
        if self.copies == 2:
            conditions = {
                k: torch.cat([v, torch.full_like(v, UNKNOWN)]) for k, v in conditions.items()
            }
        self.h_BD, self.decoding = self.model.begin(
            conditions, windows * self.copies, self.windows.max_tokens
        )

    def choose(self) -> Tensor:
        """The next step of every row, field by field, shape (B, F)."""
        head, B = self.model.head, len(self.live)
        chosen_BF = torch.zeros(B, len(head.sizes), dtype=torch.int64, device=self.device)
        for place, column in enumerate(head.order):
            allowed_BV = self.rows.allowed(column, chosen_BF)
            uniform = [piece.uniform.random() for piece in self.live]
            logits_BV = head.field_logits(self.h_BD, place, self._copied(chosen_BF)).float()
            if self.copies == 2:
                with_BV, without_BV = logits_BV.log_softmax(-1).chunk(2)
                logits_BV = without_BV + self.settings.guidance * (with_BV - without_BV)
            uniform_B = torch.tensor(uniform, dtype=torch.float64, device=self.device)
            chosen_BF[:, column] = self.settings.choice(logits_BV, allowed_BV, uniform_B)
        return chosen_BF

    def push(self, chosen_BF: Tensor) -> None:
        """Appends the step to the pieces; those that have ended get the reason."""
        belongs = self.rows.push(chosen_BF).tolist()
        done, bars = self.rows.done_B.tolist(), self.rows.bars_B.tolist()
        eos, settings = self.tokenizer.spec.special("EOS"), self.settings
        for row, (piece, step) in enumerate(zip(self.live, chosen_BF.tolist(), strict=True)):
            if belongs[row]:
                piece.ids.append(self.windows.renumbered(step, piece.first))
            piece.bars = bars[row]
            if done[row]:
                piece.stop = "end" if tuple(piece.ids[-1]) == eos else "bars"
            elif settings.tokens is not None and len(piece.ids) >= settings.tokens:
                self._close(row, "tokens")
            elif settings.seconds is not None and piece.bars != piece.bars_timed:
                piece.bars_timed = piece.bars
                self._stop_in_time(row, settings.seconds)

    def _close(self, row: int, why: str) -> None:
        piece = self.live[row]
        keep, more = self.rows.close(row)
        ends = [self.windows.renumbered(step, piece.first) for step in more.tolist()]
        piece.ids, piece.stop = piece.ids[:keep] + ends, why

    def _stop_in_time(self, row: int, seconds: float) -> None:
        """Ends a piece with the bar in which a time lies, if that has been reached."""
        piece = self.live[row]
        ids = np.array(piece.ids, np.int64)
        try:
            song = self.tokenizer.clean(self.tokenizer.decode(ids))
        except RejectedSongError:  # silence so far
            return
        at = song.bar_seconds()
        more = np.arange(1, max(0, piece.bars - song.n_bars) + 1) * (at[-1] - at[-2])
        at = np.concatenate([at, at[-1] + more])[: piece.bars + 1]
        reached = int(np.searchsorted(at, seconds))
        if reached > piece.bars:
            return
        steps = self.rows.bar_steps(row)
        ids = ids[: steps[reached]] if reached < len(steps) else ids
        if self.tokenizer.spec.bars == "none":
            # Notes that sound across the last barline get their end.
            again = self.grammar.start(1)
            again.feed(0, ids)
            keep, close = again.close(0)
            ids = np.concatenate([ids[:keep], close])
        piece.ids, piece.bars, piece.stop = ids.tolist(), reached, "seconds"

    def advance(self, chosen_BF: Tensor) -> None:
        """Feeds the step to the model; windows that have become too long are restarted."""
        restart: dict[int, Longs] = {}
        lengths = self.decoding.state.lengths
        longest = self.windows.max_tokens + self.model.n_prefix
        for row, piece in enumerate(self.live):
            if piece.stop:
                continue
            first = self.windows.first_bar(self.rows, row, piece.first, self.max_bars)
            full = lengths[row] >= longest
            if first == piece.first and not full:
                continue
            window = self._window(row, first, full)
            if window is None:
                self._close(row, "context")
            else:
                restart[row] = window
        going = [row for row, piece in enumerate(self.live) if not piece.stop]
        B = len(self.live)
        if len(going) < B:
            self.rows.keep(going)
            self.live = [self.live[row] for row in going]
            self.decoding.keep([row + copy * B for copy in range(self.copies) for row in going])
            restart = {place: restart[row] for place, row in enumerate(going) if row in restart}
            chosen_BF = chosen_BF[going]
            B = len(going)
        if not going:
            return
        places = [row + copy * B for copy in range(self.copies) for row in restart]
        if places:
            # Such a row may be full; it gets its whole window below, the step included.
            self.decoding.state.reset(places, [0] * len(places))
        self.h_BD = self.model.advance(self._copied(chosen_BF), self.decoding)
        if places:
            windows = [torch.from_numpy(ids) for ids in restart.values()] * self.copies
            self.h_BD[places] = self.model.restart(places, windows, self.decoding)

    def _copied(self, chosen_BF: Tensor) -> Tensor:
        return chosen_BF if self.copies == 1 else chosen_BF.repeat(self.copies, 1)

    def _window(self, row: int, first: int, full: bool = False) -> Longs | None:
        """The row's window from a bar on, from a later one if it is full; None if no bar fits."""
        ids = np.array(self.live[row].ids, np.int64)
        window = None if full else self.windows.cut(ids, self.rows, row, first)
        while window is None or len(window) > self.windows.max_tokens:
            later = self.windows.shorter(self.rows, row, first, len(ids))
            if later is None:
                return None
            first = later
            window = self.windows.cut(ids, self.rows, row, first)
        self.live[row].first = first
        self.rows.slide(row, first)
        return window


class Windows:
    """Cuts a window of the last bars of unfinished music, as in training.

    A window begins at a bar; what is in force there is restated.
    """

    def __init__(self, grammar: Grammar, context: Context) -> None:
        self.spec = grammar.tokenizer.spec
        # A window that slides must keep a whole bar before the one that is being written.
        self.bars = max(2, min(context.bars, self.spec.max_bars))
        self.max_tokens = context.max_tokens
        self._cutter = phrase_cutter(self.spec)

    def first_bar(self, rows: Rows, row: int, first: int, max_bars: int | None) -> int:
        """Where a row's window that begins with bar ``first`` should begin now.

        Half a window of past is kept. A piece that fits one window keeps it whole; otherwise the
        window moves on as soon as its last bar begins, because the model never saw a bar after it.
        """
        if max_bars is not None and max_bars - first <= self.bars:
            return first
        bar = len(rows.bar_steps(row)) - 1
        if bar - first + 1 < self.bars:
            return first
        return max(first, min(bar - 1, bar - self.bars // 2 + 1))

    def shorter(self, rows: Rows, row: int, first: int, n_steps: int) -> int | None:
        """A later bar for a window of too many steps, dropping half; None if no bar fits."""
        steps = rows.bar_steps(row)
        wanted, last = n_steps - self.max_tokens // 2, len(steps) - 2
        if last <= first:
            return None
        return next((bar for bar in range(first + 1, last) if steps[bar] >= wanted), last)

    def cut(self, ids_TF: Longs, rows: Rows, row: int, first: int) -> Longs:
        """The window of a row's steps ``ids_TF`` from bar ``first`` on, int64 (T, F)."""
        if first == 0:
            return ids_TF
        steps = np.array([*rows.bar_steps(row), len(ids_TF)], np.int32)
        if self._cutter is not None:
            tempo = self._cutter.bar_tempo(ids_TF, steps)
            return self._cutter.cut(ids_TF, steps, tempo, first, len(steps) - 1)[0]
        before, after = ids_TF[: steps[first]], self._without_orphans(ids_TF[steps[first] :])
        shifts = rows.opening(row, first)
        # The bar's own statements: first its meter, then its tempo.
        types = self.spec.fields[0].types
        said = [types[i] for i in after[:2, 0].tolist()] if not len(shifts) else []
        own = int(said[:1] == ["TimeSig"])
        restated = []
        for kind, at in (("TimeSig", 1), ("Tempo", 2)):
            last = np.flatnonzero(self.spec.fields[0].is_type(kind)[before[:, 0]])
            if len(last) and kind not in said[:at]:
                restated.append(before[last[-1]])
        opening = np.array(restated, np.int64).reshape(-1, ids_TF.shape[1])
        return np.concatenate([after[:own], opening, shifts, after[own:]])

    def renumbered(self, step: Sequence[int], first: int) -> list[int]:
        """A step of a window that begins with bar ``first``, bars numbered from the beginning."""
        out = list(step)
        for column, low in self._cutter.number_fields if self._cutter else ():
            if out[column] >= low:  # specials lie below
                out[column] += first
        return out

    def _without_orphans(self, ids_TF: Longs) -> Longs:
        """Without the ends of notes that began before."""
        f = self.spec.fields[0]
        program, sounding, keep = -1, set(), np.ones(len(ids_TF), bool)
        for at, i in enumerate(ids_TF[:, 0].tolist()):
            kind = f.types[i]
            note = (program, kind.startswith("Drum"), f.values[i])
            if kind == "Program":
                program = i
            elif kind in ("NoteOn", "DrumOn"):
                sounding.add(note)
            elif kind in ("NoteOff", "DrumOff"):
                if note not in sounding:
                    keep[at] = False
                    if at and f.types[ids_TF[at - 1, 0]] == "Program":
                        keep[at - 1] = False
                sounding.discard(note)
        return ids_TF[keep]
