"""Attention over the phrases of a song, on the vectors of a trained encoder.

For phrase i of a song with vector z_i (standardised) and log-probabilities l_i::

    a_i    = softmax_i(w . (tanh(V z_i) * sigmoid(U z_i)))          gated attention
    logits = s * sum_i a_i l_i + W sum_i a_i z_i + b

The weights a_i are those of Ilse et al. 2018, "Attention-based Deep Multiple Instance Learning",
equation 9, which adds a gate to the word attention of Yang et al. 2016, equations 5 to 7. The
encoder's own log-probabilities stay in as the first term: w, W and b start at 0 and s at 1, where
the whole is exactly the mean log-probability, so that the fit learns only what the mean lacks.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from midigenre.models.transformer import segment_softmax
from midigenre.spec import UNKNOWN

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

HIDDEN = 32
LEARNING_RATE, WEIGHT_DECAY, DROPOUT = 2e-3, 0.1, 0.5
BATCH_SONGS = 64
MAX_EPOCHS, PATIENCE = 60, 8
KEEP_PHRASES = 0.7
"""Share of a song's phrases that a training step sees: no single phrase may carry a song."""


@dataclass(frozen=True)
class Bags:
    """Phrases of songs.

    Attributes:
        vectors_ND: Vectors of the phrases, shape (N, D).
        log_probs_NC: Their log-probabilities, shape (N, C).
        song_N: Song of each phrase, 0 to S - 1 in ascending order.
        n_songs: Number of songs, S.
    """

    vectors_ND: Tensor
    log_probs_NC: Tensor
    song_N: Tensor
    n_songs: int

    @classmethod
    def of(cls, vectors_ND: Any, log_probs_NC: Any, song_N: Any) -> tuple[NDArray[Any], Bags]:
        """The songs, ascending, and their phrases."""
        songs_S, song_N = np.unique(np.asarray(song_N), return_inverse=True)
        return songs_S, cls(
            torch.as_tensor(np.asarray(vectors_ND), dtype=torch.float32),
            torch.as_tensor(np.asarray(log_probs_NC), dtype=torch.float32),
            torch.as_tensor(song_N),
            len(songs_S),
        )

    @cached_property
    def _by_song(self) -> tuple[Tensor, Tensor]:
        """The phrases song by song, shape (N,), and where each song begins, shape (S + 1,)."""
        counts_S = torch.bincount(self.song_N, minlength=self.n_songs)
        begin_S1 = nn.functional.pad(counts_S.cumsum(0), (1, 0))
        return torch.argsort(self.song_N, stable=True), begin_S1

    def select(self, songs: Tensor) -> Bags:
        """Some of the songs, numbered anew in the order given; costs as much as they have phrases.

        Args:
            songs: Their numbers, shape (s,).
        """
        order_N, begin_S1 = self._by_song
        counts_s = begin_S1[songs + 1] - begin_S1[songs]
        place_n = torch.repeat_interleave(torch.arange(len(songs)), counts_s)
        # Runs that count up from where each song begins.
        ends_s = counts_s.cumsum(0)
        chosen_n = order_N[
            torch.arange(len(place_n)) + (begin_S1[songs] - (ends_s - counts_s))[place_n]
        ]
        return Bags(self.vectors_ND[chosen_n], self.log_probs_NC[chosen_n], place_n, len(songs))

    def of_phrases(self, keep_N: Tensor) -> Bags:
        """The same songs with some of their phrases, by a mask of shape (N,)."""
        return Bags(
            self.vectors_ND[keep_N], self.log_probs_NC[keep_N], self.song_N[keep_N], self.n_songs
        )


class SongAttention(nn.Module):
    """The module of this file's formulas.

    Args:
        d_model: Width of the vectors, D.
        n_classes: Number of classes, C.
        hidden: Width of the attention.
    """

    mean_D: Tensor
    scale_D: Tensor

    def __init__(self, d_model: int, n_classes: int, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.tanh = nn.Linear(d_model, hidden)
        self.gate = nn.Linear(d_model, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)
        self.out = nn.Linear(d_model, n_classes)
        self.dropout = nn.Dropout(DROPOUT)
        self.scale = nn.Parameter(torch.ones(()))
        for zero in (self.score.weight, self.out.weight, self.out.bias):
            nn.init.zeros_(zero)
        self.register_buffer("mean_D", torch.zeros(d_model))
        self.register_buffer("scale_D", torch.ones(d_model))

    def standardise(self, vectors_ND: Tensor) -> None:
        """Takes mean and spread of the vectors from those of the songs to fit."""
        self.mean_D.copy_(vectors_ND.mean(0))
        self.scale_D.copy_(vectors_ND.std(0, correction=0).clamp_min(1e-4))

    def attention(self, z_ND: Tensor, bags: Bags) -> Tensor:
        """Weights of the phrases, shape (N,), that sum to 1 over each song."""
        score_N = self.score(torch.tanh(self.tanh(z_ND)) * torch.sigmoid(self.gate(z_ND)))
        return segment_softmax(score_N.squeeze(-1), bags.song_N, bags.n_songs)

    def forward(self, bags: Bags) -> Tensor:
        """Log-probabilities of songs, shape (S, C)."""
        z_ND = (bags.vectors_ND - self.mean_D) / self.scale_D
        a_N = self.attention(self.dropout(z_ND), bags)[:, None]
        zeros = z_ND.new_zeros
        z_SD = zeros(bags.n_songs, z_ND.shape[1]).index_add(0, bags.song_N, a_N * z_ND)
        l_SC = zeros(bags.n_songs, bags.log_probs_NC.shape[1]).index_add(
            0, bags.song_N, a_N * bags.log_probs_NC
        )
        logits_SC: Tensor = self.scale * l_SC + self.out(self.dropout(z_SD))
        return logits_SC.log_softmax(-1)


def fit_attention(
    fit: Bags, fit_truth: Ints, stop: Bags, stop_truth: Ints, n_classes: int, seed: int = 0
) -> tuple[SongAttention, dict[str, Any]]:
    """Fits the attention, and keeps the epoch with the best likelihood of other songs.

    The start, which is the mean over the phrases, is one of the candidates.

    Args:
        fit: Songs to fit.
        fit_truth: Their classes, shape (S,); those of UNKNOWN are left out.
        stop: Songs that say when to stop.
        stop_truth: Their classes.
        n_classes: Number of classes, C.
        seed: Seed of the start, the order and the dropout; the global generator is left as it is.

    Returns:
        The module in evaluation mode, and ``epoch`` (0 is the mean), ``nll_mean`` and ``nll``: the
        losses on the stopping songs before and after, in nats a song.
    """
    fit, truth = _labelled(fit, fit_truth)
    stop, stop_target = _labelled(stop, stop_truth)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SongAttention(fit.vectors_ND.shape[1], n_classes)
        if not fit.n_songs or not stop.n_songs:
            return model.eval(), {"epoch": 0, "nll_mean": None, "nll": None}
        model.standardise(fit.vectors_ND)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
        )
        best = nll_mean = _nll(model, stop, stop_target)
        kept, kept_epoch = copy.deepcopy(model.state_dict()), 0
        for epoch in range(1, MAX_EPOCHS + 1):
            model.train()
            for songs in torch.split(torch.randperm(fit.n_songs), BATCH_SONGS):
                bags = _some_phrases(fit.select(songs))
                loss = nn.functional.nll_loss(model(bags), truth[songs])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            if (nll := _nll(model, stop, stop_target)) < best:
                best, kept, kept_epoch = nll, copy.deepcopy(model.state_dict()), epoch
            elif epoch - kept_epoch >= PATIENCE:
                break
        model.load_state_dict(kept)
    return model.eval(), {"epoch": kept_epoch, "nll_mean": nll_mean, "nll": best}


def _labelled(bags: Bags, truth_S: Ints) -> tuple[Bags, Tensor]:
    songs = torch.as_tensor(np.flatnonzero(truth_S != UNKNOWN))
    return bags.select(songs), torch.as_tensor(truth_S)[songs]


def _some_phrases(bags: Bags) -> Bags:
    """A random choice of the phrases that leaves each song at least one."""
    draw_N = torch.rand(len(bags.song_N))
    low_S = torch.ones(bags.n_songs).scatter_reduce(0, bags.song_N, draw_N, "amin")
    return bags.of_phrases(draw_N <= low_S[bags.song_N].clamp_min(KEEP_PHRASES))


@torch.no_grad()
def _nll(model: SongAttention, bags: Bags, truth_S: Tensor) -> float:
    model.eval()
    return float(nn.functional.nll_loss(model(bags), truth_S))


@torch.no_grad()
def attention_log_probs(model: SongAttention, bags: Bags) -> Floats:
    """Log-probabilities of songs, shape (S, C)."""
    found: Floats = model.eval()(bags).double().log_softmax(-1).numpy()
    return found
