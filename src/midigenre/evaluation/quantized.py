"""What a generator loses by eight-bit weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from midigenre.evaluation.tokens import TokenMetrics
from midigenre.models import PhraseGenerator
from midigenre.models.cpu import quantize_int8
from midigenre.spec import Batch, TokenSpec


@torch.inference_mode()
def int8_cost(
    model: PhraseGenerator, batches: Iterable[Batch], spec: TokenSpec
) -> dict[str, dict[str, float]]:
    """Scores of a generator and of its int8 form on the same windows, under their own labels.

    Args:
        model: A trained generator, float32 on the CPU, in evaluation mode.
        batches: Windows that it was not trained on.
        spec: Its vocabulary.

    Returns:
        ``{"float32": scores, "int8": scores}``; scores as
        :class:`~midigenre.evaluation.tokens.TokenMetrics` gives them.

    Raises:
        ValueError: The model has no int8 form.
    """
    models = {"float32": model, "int8": quantize_int8(model)}
    metrics = {name: TokenMetrics(spec) for name in models}
    for batch in batches:
        for name, one in models.items():
            metrics[name].update(*one.loss(batch), batch.ids_NF)
    return {
        name: {key: float(value) for key, value in found.compute().items()}
        for name, found in metrics.items()
    }
