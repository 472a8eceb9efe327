"""Gradient times input: what the steps of a bar, or of a program's notes, add to first order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from midigenre.data.sampler import group_by_budget
from midigenre.data.shards import Songs
from midigenre.midi.song import DRUMS
from midigenre.models import PhraseClassifier
from midigenre.spec import Batch, TokenSpec
from midigenre.tasks.attribution import (
    LOG_ZERO,
    Attribution,
    Floats,
    Longs,
    Seen,
    Targets,
    batch_of,
    log_odds,
    log_odds_slope,
)
from midigenre.tasks.predict import Predictions
from midigenre.tokenizers.notes import NoteFinder

_NO_PROGRAM = DRUMS - 1


class GradientInput:
    """Explains by gradients; call it with songs.

    Args:
        model: The classifier.
        tokens: Its vocabulary.
        has_programs: Whether it says programs.
        batch_phrases: Most phrases in a batch.
        batch_tokens: Most steps in a batch, but for a longer phrase, which makes one alone.
        device: Where to compute.

    Raises:
        ValueError: The notes cannot be found in the tokens.
    """

    def __init__(
        self,
        model: PhraseClassifier,
        tokens: TokenSpec,
        has_programs: bool,
        batch_phrases: int,
        batch_tokens: int,
        device: torch.device,
    ) -> None:
        self._model, self._has_programs, self._device = model, has_programs, device
        self._batch_phrases, self._batch_tokens = batch_phrases, batch_tokens
        self._places = _Places(tokens)

    def __call__(
        self, songs: Songs, seen: Seen, found: Predictions, targets: Targets
    ) -> list[dict[str, Attribution]]:
        """For each song the attribution of each label.

        Args:
            songs: The songs.
            seen: Their phrases.
            found: What the model says of each phrase, in the same order.
            targets: The classes.
        """
        out: list[dict[str, Attribution]] = [{} for _ in range(len(songs))]
        sums: list[dict[str, Floats]] = [{} for _ in range(len(songs))]
        # By the chain rule the gradient of a song's log-odds is that of a weighted sum of its
        # phrases' log-probabilities, whose weights are known: phrases can be batched as they come.
        weights: dict[str, Floats] = {}
        for label in self._model.heads:
            log_probs = np.maximum(found.log_probs[label], LOG_ZERO)
            weights[label] = np.zeros_like(log_probs)
            for song in range(len(songs)):
                mine = np.flatnonzero(seen.phrases.song == song)
                mean_C, target = log_probs[mine].mean(0), int(targets[label][song])
                bars = seen.zero_bars(songs, song)
                out[song][label] = Attribution(target, log_odds(mean_C, target), bars, {})
                sums[song][label] = np.zeros(_Places.N_PROGRAMS)
                weights[label][mine] = log_odds_slope(mean_C, target) / len(mine)
        lengths = np.array([len(ids) for ids in seen.ids], np.int64)
        for group in group_by_budget(lengths, self._batch_phrases, self._batch_tokens):
            batch = batch_of([seen.ids[i] for i in group]).to(self._device)
            for label, of_step_N in self._of_steps(batch, weights, group).items():
                parts = np.split(of_step_N, np.cumsum(lengths[group])[:-1])
                for i, of_step_T in zip(group.tolist(), parts, strict=True):
                    song, first, _ = seen.where(i)
                    bar_T, program_T = self._places(seen.ids[i])
                    inside = bar_T >= 0
                    np.add.at(out[song][label].bars, first + bar_T[inside], of_step_T[inside])
                    np.add.at(sums[song][label], program_T - _NO_PROGRAM, of_step_T)
        if self._has_programs:
            for song, explained in enumerate(out):
                for label, attribution in explained.items():
                    attribution.programs.update(
                        {
                            p: float(sums[song][label][p - _NO_PROGRAM])
                            for p in seen.programs(songs, song)
                        }
                    )
        return out

    def _of_steps(
        self, batch: Batch, weights: Mapping[str, Floats], group: Sequence[int] | Longs
    ) -> dict[str, Floats]:
        """Gradient times input of each step, shape (N,), for each label."""
        model = self._model.to(self._device).eval()
        out: dict[str, Floats] = {}
        # The cuDNN kernels of an LSTM have no backward pass in evaluation mode.
        with (
            torch.enable_grad(),
            torch.backends.cudnn.flags(enabled=False),
            _embedded(model.embedding) as captured,
        ):
            logits = model(batch)
            (h_ND,) = captured
            for label, logits_BC in logits.items():
                weight_BC = torch.from_numpy(weights[label][group]).to(logits_BC)
                score = (weight_BC * logits_BC.log_softmax(-1)).sum()
                (slope_ND,) = torch.autograd.grad(score, h_ND, retain_graph=True)
                out[label] = (slope_ND * h_ND).sum(-1).detach().double().cpu().numpy()
        return out


class _Places:
    """To which bar and which program each step of a phrase belongs; call it with its tokens.

    Raises:
        ValueError: The notes cannot be found in the tokens.
    """

    N_PROGRAMS = 130  # none, drums, 0 to 127

    def __init__(self, tokens: TokenSpec) -> None:
        self._find = NoteFinder(tokens)
        self._field = tokens.bars == "field"
        self._column, field = next(
            (c, f) for c, f in enumerate(tokens.fields) if f.is_type("Bar").any()
        )
        self._is_bar = field.is_type("Bar")
        self._first_bar = int(np.flatnonzero(self._is_bar)[0])
        self._eos = tokens.special("EOS")

    def __call__(self, ids_TF: NDArray[np.int64]) -> tuple[Longs, Longs]:
        """Of each step the bar in the phrase, -1 for BOS and EOS, and the program, -2 for none."""
        column = ids_TF[:, self._column]
        is_bar_T = self._is_bar.take(column)
        if self._field:
            bar_T = np.where(is_bar_T, column - self._first_bar, -1)
        else:
            bar_T = np.cumsum(is_bar_T) - 1
            if self._eos is not None:
                bar_T[(ids_TF == np.array(self._eos)).all(1)] = -1
        notes = self._find(ids_TF)
        program_T = np.full(len(ids_TF), _NO_PROGRAM)
        for steps_n in notes.steps_nA.T:
            said = steps_n >= 0
            program_T[steps_n[said]] = notes.program[said]
        return bar_T, program_T


@contextmanager
def _embedded(embedding: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what an embedding gives, as leaves by which a gradient can be taken."""
    captured: list[Tensor] = []

    def capture(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        captured.append(output.detach().requires_grad_())
        return captured[-1]

    handle = embedding.register_forward_hook(capture)
    try:
        yield captured
    finally:
        handle.remove()
