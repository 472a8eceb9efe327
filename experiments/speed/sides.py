"""What is timed: our classifier and DistilBERT, each over the same phrases, and the matmul peak."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from phrase_sets import PhraseSet
from torch import Tensor, nn

from midigenre import build
from midigenre.tasks.optim import AdamWSettings

Pass = Callable[[int | None], float]
"""Trains once over the first batches (None for all) and returns the seconds."""

CLIP = 1.0  # conf/trainer/cpu.yaml: gradient_clip_val


def ours(phrases: PhraseSet, cfg: Any, dropout: float | None = None) -> tuple[nn.Module, Pass]:
    """Our classifier on packed batches; ``dropout`` None for the config's own."""
    model_cfg, task_cfg = build.plain(cfg.model), build.plain(cfg.task)
    if dropout is not None:
        model_cfg["dropout"] = task_cfg["head_dropout"] = dropout
    torch.manual_seed(0)
    model = build.make_model(model_cfg, task_cfg, phrases.tokens, phrases.classes).train()
    batches = phrases.batches()
    steps = [lambda b=b: model.loss(model(b), b)[0] for b in batches]
    return model, _training(model, build.make_optim(cfg), steps)


def distilbert(
    phrases: PhraseSet, cfg: Any, dropout: float, buckets: bool
) -> tuple[float, nn.Module, Pass]:
    """Hugging Face DistilBERT of the same shape, padded to each batch's longest.

    Args:
        phrases: The phrases.
        cfg: For the shape and the optimizer.
        dropout: Of residuals, attention and head (as shipped: 0.1, 0.1, and 0.2 in the head).
        buckets: Whether the phrases are sorted by length first; the window is the whole set.

    Returns:
        The share of real tokens among the padded, the model, the pass.
    """
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    torch.manual_seed(0)
    shape = cfg.model
    config = DistilBertConfig(
        vocab_size=phrases.tokens.sizes[0],
        max_position_embeddings=2048,
        dim=shape.d_model,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        hidden_dim=shape.d_ff,
        dropout=dropout,
        attention_dropout=dropout,
        seq_classif_dropout=2 * dropout,
        num_labels=len(phrases.classes.classes["genre"]),
    )
    model = DistilBertForSequenceClassification(config).train()
    order = np.argsort(phrases.lengths, kind="stable") if buckets else np.arange(len(phrases.ids))
    steps, padded = [], 0
    for begin in range(0, len(order), phrases.batch_phrases):
        inputs = _padded(phrases, order[begin : begin + phrases.batch_phrases].tolist())
        padded += inputs["input_ids"].numel()
        steps.append(lambda inputs=inputs: model(**inputs).loss)
    run = _training(model, build.make_optim(cfg), steps)
    return sum(phrases.lengths) / padded, model, run


def _padded(phrases: PhraseSet, chosen: Sequence[int]) -> dict[str, Tensor]:
    ids = [torch.from_numpy(phrases.ids[i][:, 0]) for i in chosen]
    lengths = torch.tensor([len(i) for i in ids])
    return {
        "input_ids": nn.utils.rnn.pad_sequence(ids, batch_first=True),
        "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
        "labels": torch.from_numpy(phrases.labels[chosen]),
    }


def _training(
    model: nn.Module, optim: AdamWSettings, steps: Sequence[Callable[[], Tensor]]
) -> Pass:
    """Forward, backward, clipping, AdamW for each batch; the same code for every side."""
    optimizer = optim.optimizer(model)

    def run(n_batches: int | None) -> float:
        begin = time.perf_counter()
        for loss in steps[:n_batches]:
            optimizer.zero_grad()
            loss().backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
        return time.perf_counter() - begin

    return run


def model_flops(phrases: PhraseSet, shape: Any) -> float:
    """Floating-point operations of a pass: forward and twice that for backward.

    Per token 6 for each weight of a layer's matrices (Kaplan et al. 2020, section 2.1), and for
    attention 12 * d_model a layer for each pair of tokens of a phrase: two products of 2 operations
    each, times 3. What is recomputed or merely elementwise does not count.
    """
    weights = shape.n_layers * (4 * shape.d_model**2 + 2 * shape.d_model * shape.d_ff)
    pairs = sum(n * n for n in phrases.lengths)
    return float(6 * weights * sum(phrases.lengths) + 12 * shape.n_layers * shape.d_model * pairs)


def matmul_peak(shape: Any, rows: int) -> dict[str, float]:
    """GFLOP/s of the best float32 product of each library: the model's own sizes, and 2048 cubed.

    ``mkl`` is ``torch.mm``, ``onednn`` the library that our linear layers call.
    """
    sizes = [(rows, shape.d_model, shape.d_ff), (rows, shape.d_ff, shape.d_model), (2048,) * 3]
    engines: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "mkl": lambda a, b: a @ b.T,
        "onednn": lambda a, b: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""),
    }
    peak = dict.fromkeys(engines, 0.0)
    for m, k, n in sizes:
        a, b = torch.randn(m, k), torch.randn(n, k)
        for name, multiply in engines.items():
            for _ in range(6):
                begin = time.perf_counter()
                multiply(a, b)
                seconds = time.perf_counter() - begin
                peak[name] = max(peak[name], 2 * m * k * n / seconds / 1e9)
    return peak
