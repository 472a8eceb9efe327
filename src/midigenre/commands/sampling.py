"""From the settings of a command to a sampler: what ``generate`` and ``judge`` share."""

from __future__ import annotations

import torch
from omegaconf import DictConfig

from midigenre.errors import UserError
from midigenre.generation.grammar import Grammar
from midigenre.generation.sampling import Choice, Sampler, SamplingSettings
from midigenre.models import PhraseGenerator
from midigenre.models.cpu import quantize_int8
from midigenre.tasks.samples import context_for
from midigenre.tokenizers.base import from_spec
from midigenre.trained import Run

NUMBERS = (
    "temperature", "top_k", "top_p", "min_p", "guidance", "seed", "bars", "seconds", "tokens",
)  # fmt: skip


def sampling_settings(cfg: DictConfig) -> SamplingSettings:
    """How pieces are drawn, from ``conf/sampling``.

    Raises:
        UserError: A value that makes no sense.
    """
    for key in NUMBERS:
        if isinstance(cfg[key], (bool, str)):
            raise UserError(f"{key}={cfg[key]} is no number")
    try:
        choice = Choice(cfg.temperature, cfg.top_k, cfg.top_p, cfg.min_p)
        return SamplingSettings(choice, cfg.guidance, cfg.seed, cfg.bars, cfg.seconds, cfg.tokens)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error


QUANTIZE = ("int8",)


def make_sampler(trained: Run, device: torch.device, quantize: str | None = None) -> Sampler:
    """A sampler of a trained generator, on a device.

    Args:
        trained: The generator.
        device: Where to compute.
        quantize: ``int8`` for eight-bit weights, None for the model as it is.

    Raises:
        UserError: Its tokenizer has no grammar, or it cannot be quantised.
    """
    model = trained.model.to(device)
    assert isinstance(model, PhraseGenerator)
    if quantize is not None:
        if quantize not in QUANTIZE:
            raise UserError(f"quantize={quantize}; choose {', '.join(QUANTIZE)} or null")
        try:
            model = quantize_int8(model)
        except ValueError as error:
            raise UserError(f"quantize={quantize}: {error}") from error
    grammar = Grammar(from_spec(trained.tokens))
    return Sampler(model, grammar, context_for(trained.data, trained.tokens))


def conditions_of(generator: Run) -> tuple[str, ...]:
    """Labels that a generator was told of."""
    model = generator.model
    assert isinstance(model, PhraseGenerator)
    return tuple(model.conditions.classes) if model.conditions else ()
