"""Writes music with a generator, step by step, inside its tokenizer's grammar.

B rows   T steps   F fields of a step   D model width   V vocabulary of a field
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from midigenre.errors import RefusedSongError, UserError
from midigenre.generation.grammar import Grammar, Ids, Rows
from midigenre.generation.windows import Context, Windows
from midigenre.models import PhraseGenerator
from midigenre.models.kernels import packed
from midigenre.spec import UNKNOWN

Report = Callable[[str, int, int], None]
"""``(what, done, total)``; a total of 0 is an unknown one."""


@dataclass(frozen=True)
class Choice:
    """How a token is drawn; the filters apply to each field of a step, in this order.

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
        for name, low, high in (
            ("temperature", 0, 100),
            ("top_k", 0, 2**31),
            ("top_p", 0, 1),
            ("min_p", 0, 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high or (name == "top_p" and value == 0):
                least = "more than 0" if name == "top_p" else f"{low} or more"
                raise ValueError(f"{name}={value} must be {least}, and at most {high}")

    def __call__(self, logits_BV: Tensor, allowed_BV: Tensor, uniform_B: Tensor) -> Tensor:
        """Draws a token of each row.

        Args:
            logits_BV: Shape (B, V).
            allowed_BV: What may be drawn, at least one token a row.
            uniform_B: Numbers in [0, 1), float64: the same number draws the same token.

        Returns:
            Ids, int64 (B,).

        Raises:
            UserError: The logits of a row are no numbers.
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
        seed: Seed; piece i of a seed is the same whatever is drawn beside it.
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
        for name in ("bars", "seconds", "tokens"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} must be more than 0")
        if self.seed < 0 or not np.isfinite(self.guidance):
            raise ValueError(f"seed={self.seed}, guidance={self.guidance}: out of range")
        if self.bars is None and self.seconds is None and self.tokens is None:
            raise ValueError("bars, seconds and tokens are all null: a piece might never end")


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

    ids_TF: Ids
    stop: str
    n_drawn: int
    n_bars: int


class Sampler:
    """Draws pieces.

    Args:
        model: The generator, in evaluation mode.
        grammar: The grammar of its tokenizer.
        context: What it was trained to see.

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
        primer: Ids | None = None,
        primer_bars: int = 0,
        report: Report | None = None,
    ) -> list[Sample]:
        """Draws n pieces side by side.

        Args:
            labels: Class index of each piece for each condition, length n; ``UNKNOWN`` is one.
            settings: How they are drawn.
            n: Number of pieces.
            first: Number of the first piece under the seed, for those who draw in batches.
            primer: Steps that all begin with, int64 (T, F), without BOS; bars from 0.
            primer_bars: Bars of it.
            report: Called with the bars that are finished.

        Returns:
            The pieces, in order.

        Raises:
            ValueError: The primer is no music of this tokenizer.
        """
        return _Draw(self, labels, settings, n, first, primer, primer_bars, report).run()


class _Draw:
    """The rows of one call of :meth:`Sampler.sample`."""

    def __init__(
        self,
        sampler: Sampler,
        labels: Mapping[str, Sequence[int]],
        settings: SamplingSettings,
        n: int,
        first: int,
        primer: Ids | None,
        primer_bars: int,
        report: Report | None,
    ) -> None:
        # Guidance runs every row a second time, without its condition.
        self.copies = 1 if settings.guidance == 1 or not labels else 2
        # Packed for each call: a model that is being trained is sampled too.
        self.model, self.windows = packed(sampler.model, n * self.copies), sampler.windows
        self.settings, self.report = settings, report
        self.grammar, self.tokenizer = sampler.grammar, sampler.grammar.tokenizer
        self.device = self.model.start_D.device
        self.max_bars = None if settings.bars is None else settings.bars + primer_bars
        self.rows: Rows = self.grammar.start(n, max_bars=self.max_bars)
        self.index = list(range(n))
        self.ids: list[list[list[int]]] = [[] for _ in range(n)]
        self.drawn = [0] * n
        self.stops: list[str] = [""] * n
        self.first = [0] * n  # bar with which each row's window begins
        self.uniform = [np.random.default_rng([settings.seed, first + i]) for i in range(n)]
        self.bars_done = [0] * n
        self.bars_timed = [0] * n
        bos = self.tokenizer.spec.special("BOS")
        assert bos is not None  # the grammar knows no vocabulary without
        opening = np.array([bos], np.int64)
        if primer is not None:
            opening = np.concatenate([opening, primer])
        for row in range(n):
            self.rows.feed(row, opening)
            self.rows.seal(row, primer_bars)
            self.ids[row] = opening.tolist()
            self.first[row] = self.windows.first_bar(self.rows, row, 0, self.max_bars)
        conditions = {k: torch.tensor(list(v), device=self.device) for k, v in labels.items()}
        if self.copies == 2:
            conditions = {
                k: torch.cat([v, torch.full_like(v, UNKNOWN)]) for k, v in conditions.items()
            }
        windows = []
        for row in range(n):
            window = self._window(row)
            while len(window) > self.windows.max_tokens:
                later = self.windows.shorter(self.rows, row, self.first[row], len(self.ids[row]))
                if later is None:
                    raise ValueError(
                        "the last bars of the primer do not fit the model's "
                        f"{self.windows.max_tokens} steps"
                    )
                self.first[row] = later
                window = self._window(row)
            self.rows.slide(row, self.first[row])
            windows.append(torch.from_numpy(window))
        self.h_BD, self.decoding = self.model.begin(
            conditions, windows * self.copies, self.windows.max_tokens
        )

    def run(self) -> list[Sample]:
        """All pieces to their ends."""
        while self.index:
            chosen_BF = self._choose()
            self._push(chosen_BF)
            self._report()
            self._advance(chosen_BF, self._stop())
        return [
            Sample(np.array(ids, np.int64), stop, drawn, bars)
            for ids, stop, drawn, bars in zip(
                self.ids, self.stops, self.drawn, self.bars_done, strict=True
            )
        ]

    def _choose(self) -> Tensor:
        """The next step of every row, field by field."""
        head, B = self.model.head, len(self.index)
        chosen_BF = torch.zeros(B, len(head.sizes), dtype=torch.int64, device=self.device)
        for place, column in enumerate(head.order):
            allowed_BV = self.rows.allowed(column, chosen_BF)
            uniform = [self.uniform[i].random() for i in self.index]
            logits_BV = head.field_logits(self.h_BD, place, self._copied(chosen_BF)).float()
            if self.copies == 2:
                with_BV, without_BV = logits_BV.log_softmax(-1).chunk(2)
                logits_BV = without_BV + self.settings.guidance * (with_BV - without_BV)
            uniform_B = torch.tensor(uniform, dtype=torch.float64, device=self.device)
            chosen_BF[:, column] = self.settings.choice(logits_BV, allowed_BV, uniform_B)
        return chosen_BF

    def _copied(self, chosen_BF: Tensor) -> Tensor:
        return chosen_BF if self.copies == 1 else chosen_BF.repeat(self.copies, 1)

    def _push(self, chosen_BF: Tensor) -> None:
        offsets = [self.first[i] for i in self.index]
        for i, first, step, belongs in zip(
            self.index, offsets, chosen_BF.tolist(), self.rows.push(chosen_BF), strict=True
        ):
            if belongs:
                self.ids[i].append(self.windows.renumbered(step, first))
                self.drawn[i] += 1

    def _report(self) -> None:
        for i, bars in zip(self.index, self.rows.bars_B.tolist(), strict=True):
            self.bars_done[i] = bars
        if self.report is not None:
            total = len(self.ids) * self.max_bars if self.max_bars else 0
            self.report("bars", sum(self.bars_done), total)

    def _stop(self) -> list[int]:
        """Ends the rows that have ended; the places of those that go on."""
        done = self.rows.done_B.tolist()
        settings, going = self.settings, []
        eos = self.tokenizer.spec.special("EOS")
        for row, i in enumerate(self.index):
            if done[row]:
                self.stops[i] = "end" if tuple(self.ids[i][-1]) == eos else "bars"
            elif settings.tokens is not None and len(self.ids[i]) >= settings.tokens:
                self._close(row, "tokens")
            elif settings.seconds is None or not self._too_long(row, settings.seconds):
                going.append(row)
        return going

    def _close(self, row: int, why: str) -> None:
        i = self.index[row]
        keep, more = self.rows.close(row)
        given = len(self.ids[i]) - self.drawn[i]
        self.ids[i] = self.ids[i][:keep] + [
            self.windows.renumbered(step, self.first[i]) for step in more.tolist()
        ]
        self.drawn[i] = max(0, len(self.ids[i]) - given)
        self.stops[i] = why

    def _too_long(self, row: int, seconds: float) -> bool:
        """Whether a time has been reached; asked again whenever a further bar is finished.

        If so the piece ends with the bar in which it lies.
        """
        i = self.index[row]
        bars = self.bars_done[i]
        if bars == self.bars_timed[i]:
            return False
        self.bars_timed[i] = bars
        ids = np.array(self.ids[i], np.int64)
        try:
            song = self.tokenizer.clean(self.tokenizer.decode(ids))
        except RefusedSongError:  # silence so far
            return False
        at = song.bar_seconds()
        more = np.arange(1, max(0, bars - song.n_bars) + 1) * (at[-1] - at[-2])
        at = np.concatenate([at, at[-1] + more])[: bars + 1]
        reached = int(np.searchsorted(at, seconds))
        if reached > bars:
            return False
        steps = self.rows.bar_steps(row)
        ids = ids[: steps[reached]] if reached < len(steps) else ids
        if self.tokenizer.spec.bars == "none":
            # Notes that sound across the last barline find their end.
            again = self.grammar.start(1)
            again.feed(0, ids)
            keep, close = again.close(0)
            ids = np.concatenate([ids[:keep], close])
        given = len(self.ids[i]) - self.drawn[i]
        self.ids[i] = ids.tolist()
        self.drawn[i] = max(0, len(ids) - given)
        self.bars_done[i] = reached
        self.stops[i] = "seconds"
        return True

    def _advance(self, chosen_BF: Tensor, going: list[int]) -> None:
        """Gives the step to the model; windows that have become too long begin again."""
        restart: dict[int, Ids] = {}
        lengths = self.decoding.state.lengths
        longest = self.windows.max_tokens + self.model.n_prefix
        for row in list(going):
            i = self.index[row]
            first = self.windows.first_bar(self.rows, row, self.first[i], self.max_bars)
            full = lengths[row] >= longest
            while first != self.first[i] or full:
                if full:
                    later = self.windows.shorter(self.rows, row, first, len(self.ids[i]))
                    if later is None:
                        self._close(row, "context")
                        going.remove(row)
                        break
                    first = later
                self.first[i] = first
                restart[row] = self._window(row)
                full = len(restart[row]) > self.windows.max_tokens
            else:
                if row in restart:
                    self.rows.slide(row, self.first[i])
        B = len(self.index)
        if len(going) < B:
            self.rows.keep(going)
            self.index = [self.index[row] for row in going]
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

    def _window(self, row: int) -> Ids:
        i = self.index[row]
        return self.windows.cut(np.array(self.ids[i], np.int64), self.rows, row, self.first[i])
