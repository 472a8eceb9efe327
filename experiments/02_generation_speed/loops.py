"""What is timed: ways to draw the same number of tokens from a model of one size."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from phrase_sets import composed
from torch import Tensor, nn

from midigenre import build
from midigenre.generation.grammar import Grammar
from midigenre.generation.sampling import Context, Sampler, SamplingSettings
from midigenre.models import PhraseGenerator
from midigenre.models.kernels import Frozen, packed, quantize_int8, with_linears
from midigenre.spec import Batch, LabelSpec
from midigenre.tokenizers.base import Tokenizer

Loop = Callable[[], float]
"""Draws all tokens and returns the seconds that it took."""

SHAPE = ("d_model", "n_layers", "n_heads", "d_ff")
GENRES = LabelSpec({"genre": tuple(f"class {i}" for i in range(12))})


@dataclass(frozen=True)
class Subject:
    """The model that is timed.

    Attributes:
        model: Our generator with untrained weights: how fast it writes does not depend on them.
        tokenizer: REMI as shipped.
        cfg: The config.
        n_tokens: Tokens of a row.
    """

    model: PhraseGenerator
    tokenizer: Tokenizer
    cfg: Any
    n_tokens: int

    @property
    def n_words(self) -> int:
        return self.tokenizer.spec.sizes[0]


def subject(quick: bool) -> Subject:
    """``model=deep task=generate`` in REMI; something small for a quick try."""
    cfg = composed("corpus=toy", "tokenizer=remi", "model=deep", "task=generate")
    if quick:
        cfg.model.update(d_model=32, n_layers=2, n_heads=4, d_ff=64)
    tokenizer = build.make_tokenizer(cfg)
    torch.manual_seed(0)
    model = build.make_model(
        build.plain(cfg.model), build.plain(cfg.task), tokenizer.spec, GENRES
    ).eval()
    assert isinstance(model, PhraseGenerator)
    field, out = tokenizer.spec.fields[0], model.head.out[0]
    with torch.no_grad():
        # No piece ends early, and 512 tokens stay inside 64 bars: no window slides.
        out.bias[field.index["EOS_None"]] -= 1e4
        out.bias[torch.from_numpy(field.is_type("Bar"))] -= 3
    return Subject(model, tokenizer, cfg, 24 if quick else 512)


def loops(of: Subject, rows: int, stride: int) -> dict[str, Loop]:
    """Our ways to write ``rows`` rows side by side."""
    writer, int8 = packed(of.model, rows), packed(quantize_int8(of.model), rows)
    plain = with_linears(of.model, Plain)
    return {
        "ours": lambda: cached(of, writer, rows),
        "ours, sampler with grammar": lambda: sampled(of, of.model, rows),
        "ours, int8": lambda: cached(of, int8, rows),
        "full recomputation": lambda: recomputed(of, of.model, rows, stride),
        "full recomputation, nn.Linear": lambda: recomputed(of, plain, rows, stride),
    }


class Plain(Frozen):
    """``nn.Linear`` as PyTorch has it: on some processors MKL is the faster for many rows."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x_NI: Tensor) -> Tensor:
        return nn.functional.linear(x_NI, self.linear.weight, self.linear.bias)


def drawn(logits_BV: Tensor) -> Tensor:
    """A token of each row, shape (B, 1); what Hugging Face does without a filter."""
    return torch.multinomial(logits_BV.softmax(-1), 1)


def labels(rows: int) -> dict[str, Tensor]:
    return {"genre": torch.arange(rows) % 12}


@torch.inference_mode()
def cached(of: Subject, model: PhraseGenerator, rows: int) -> float:
    """The bare loop: head, choice, one step of the backbone."""
    torch.manual_seed(0)
    begin = time.perf_counter()
    primes = [torch.zeros(0, 1, dtype=torch.int64)] * rows
    h_BD, decoding = model.begin(labels(rows), primes, of.n_tokens)
    for step in range(of.n_tokens):
        ids_BF = drawn(model.head.field_logits(h_BD, 0, primes[0]))
        if step + 1 < of.n_tokens:
            h_BD = model.advance(ids_BF, decoding)
    return time.perf_counter() - begin


def sampled(of: Subject, model: PhraseGenerator, rows: int) -> float:
    """All that ``midigenre generate`` does for a token: grammar, choice in float64, bookkeeping."""
    sampler = Sampler(model, Grammar(of.tokenizer), Context(of.n_tokens + 1, 64))
    settings = SamplingSettings(bars=None, tokens=of.n_tokens + 1)  # BOS is one of them
    begin = time.perf_counter()
    pieces = sampler.sample({"genre": [i % 12 for i in range(rows)]}, settings, n=rows)
    seconds = time.perf_counter() - begin
    assert {piece.stop for piece in pieces} == {"tokens"}
    return seconds


@torch.inference_mode()
def recomputed(of: Subject, model: PhraseGenerator, rows: int, stride: int) -> float:
    """The whole prefix again for each token, only the last row to the head.

    Only the middle one of ``stride`` lengths is run, and stands for them all: the time grows
    smoothly with the length.
    """
    torch.manual_seed(0)
    seconds = 0.0
    for length in range(stride // 2, of.n_tokens, stride):
        # A step more: the vector before a step foretells it.
        n = length + 1
        zeros_B = torch.zeros(rows, dtype=torch.int64)
        batch = Batch(
            torch.randint(of.n_words, (rows * n, 1)),
            torch.arange(0, rows * n + 1, n, dtype=torch.int32),
            (n,) * rows, labels(rows), zeros_B, zeros_B,
        )  # fmt: skip
        begin = time.perf_counter()
        h_ND = model(batch)
        drawn(model.head.field_logits(h_ND[n - 1 :: n], 0, batch.ids_NF))
        seconds += (time.perf_counter() - begin) * min(stride, of.n_tokens - length + stride // 2)
    return seconds


@torch.inference_mode()
def difference(of: Subject, rows: int) -> float:
    """Largest difference of a logit between the cached loop and the full pass, same tokens."""
    writer, n = packed(of.model, rows), of.n_tokens
    ids_BTF = torch.randint(of.n_words, (rows, n, 1), generator=torch.Generator().manual_seed(0))
    zeros_B = torch.zeros(rows, dtype=torch.int64)
    starts = torch.arange(0, rows * n + 1, n, dtype=torch.int32)
    batch = Batch(ids_BTF.flatten(0, 1), starts, (n,) * rows, labels(rows), zeros_B, zeros_B)
    h_BD, decoding = writer.begin(labels(rows), [ids_BTF[0, :0]] * rows, n)
    further = [writer.advance(ids_BTF[:, step], decoding) for step in range(n - 1)]
    cached_ND = torch.stack([h_BD, *further], 1).flatten(0, 1)
    off_NV = writer.head.out[0](cached_ND) - of.model.head.out[0](of.model(batch))
    return float(off_NV.abs().max())


def hugging_face(of: Subject, rows: int) -> tuple[int, dict[str, Loop]]:
    """``generate`` of a GPT-2 of that size: number of parameters, and a loop for each cache."""
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    shape = of.cfg.model
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=of.n_words,
        n_positions=of.n_tokens + 8,
        n_embd=shape.d_model,
        n_layer=shape.n_layers,
        n_head=shape.n_heads,
        n_inner=shape.d_ff,
        attn_implementation="sdpa",
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = GPT2LMHeadModel(config).eval()
    prompt = torch.ones(rows, 1, dtype=torch.int64)

    def run(cache: str) -> float:
        torch.manual_seed(0)
        begin = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=True,
                top_k=0,
                max_new_tokens=of.n_tokens,
                min_new_tokens=of.n_tokens,
                cache_implementation=cache,
            )
        seconds = time.perf_counter() - begin
        assert out.shape == (rows, of.n_tokens + 1)
        return seconds

    n_parameters = sum(p.numel() for p in model.parameters())
    return n_parameters, {c: lambda c=c: run(c) for c in ("dynamic", "static")}
