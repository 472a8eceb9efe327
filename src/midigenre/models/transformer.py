"""The classifier in one file: packed phrases in, logits of each label out.

    B phrases   N packed tokens of all phrases   F fields of a token   C classes of a label
    D model width   H heads   d width of a head (D / H)   K tokens that the convolution sees

A batch is packed and never padded (:mod:`midigenre.models.sequences`): linear layers run over all N
tokens at once; only attention, positions, the convolution and pooling look at the boundaries of the
phrases. The same weights run in both directions (classification, masked modelling) and causally
(generation): ``causal`` is an argument of the call.

A *backbone* is any module with an attribute ``d_model`` and the call of :class:`Encoder`; one that
generates also has its ``new_state``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from midigenre.models.sequences import (
    Intervals,
    KeyValueState,
    insert_prefix,
    packed_attention,
    positions_N,
    segments_N,
)
from midigenre.spec import UNKNOWN, Batch

if TYPE_CHECKING:  # it imports this file
    from midigenre.models.masking import MaskedLoss

Rotary = tuple[Tensor, Tensor]
"""Cosine and signed sine of each token's angles, float32, shape (N, 1, d)."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(q_NHd, k_NHd, v_NHd) -> out_NHd``: packed attention in training, a cache in generation."""

INIT_STD = 0.02  # GPT-2 and BERT
ROPE_BASE = 10_000.0  # Su et al. 2021 (RoFormer, arXiv 2104.09864), section 3.2.2


def check_choice(setting: str, value: str, choices: Sequence[str]) -> None:
    """Raises a ValueError that names setting, value and choices unless the value is one of them."""
    if value not in choices:
        raise ValueError(f"{setting}={value!r} is unknown; choose from: {', '.join(choices)}")


def init_weights(module: nn.Module, std: float = INIT_STD) -> None:
    """Draws weights of linear layers and tables from a normal distribution; biases become 0."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)


class FieldEmbedding(nn.Module):
    """Token ids to vectors: the one place where the number of fields of a tokenizer matters.

    Each field has a table. The vectors of a token are concatenated and projected (MusicBERT, Zeng
    et al. 2021, arXiv 2106.05630, section 3.2; with narrow tables Compound Word, Hsiao et al. 2021,
    arXiv 2101.02402, section 4.2), or summed. With one field (REMI) there is nothing to project.

    Args:
        sizes: Vocabulary size of each field (``TokenSpec.sizes``), length F.
        d_model: Model width D.
        combine: ``concat`` or ``sum``.
        d_field: Width of each table for ``concat``; ``d_model`` if None, as in MusicBERT.
        dropout: Dropout of the result.
        intervals: Added to the fields' vectors; None for the fields alone.

    Raises:
        ValueError: An unknown ``combine``, or a ``d_field`` that ``sum`` cannot use.
    """

    def __init__(
        self, sizes: Sequence[int], d_model: int, combine: str = "concat",
        d_field: int | None = None, dropout: float = 0.1,
        intervals: Intervals | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_choice("combine", combine, ("concat", "sum"))
        self.sizes, self.d_model = tuple(sizes), d_model
        self.intervals = intervals
        concat = combine == "concat" and len(self.sizes) > 1
        if combine == "sum" and len(sizes) > 1 and d_field not in (None, d_model):
            raise ValueError(
                f"d_field={d_field} cannot be summed into d_model={d_model}; leave d_field empty "
                "or take combine='concat'"
            )
        d_table = d_field or d_model if concat else d_model
        self.tables = nn.ModuleList(nn.Embedding(size, d_table) for size in sizes)
        self.project = nn.Linear(len(sizes) * d_table, d_model) if concat else None
        self.dropout = nn.Dropout(dropout)
        # A token's vector has standard deviation 0.02 whichever way its fields are combined.
        init_weights(self.tables, INIT_STD if concat else INIT_STD / math.sqrt(len(sizes)))
        if self.project is not None:  # 1 / sqrt(fan in) keeps the scale; 0.02 would shrink it
            init_weights(self.project, 1 / math.sqrt(self.project.in_features))

    def forward(self, ids_NF: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        """Token ids, int64 (N, F), to vectors, (N, D); intervals need the boundaries, (B + 1,)."""
        fields = [table(ids_N) for table, ids_N in zip(self.tables, ids_NF.T, strict=True)]
        if self.project is None:
            h_ND = sum(fields[1:], fields[0])
        else:
            h_ND = self.project(torch.cat(fields, dim=-1))
        if self.intervals is not None:
            h_ND = h_ND + self.intervals(ids_NF, cu_seqlens)
        return cast(Tensor, self.dropout(h_ND))


# --- the encoder ----------------------------------------------------------------------------------


class DropAdd(nn.Module):
    """``h + dropout(change)``; :mod:`midigenre.models.kernels` puts a faster one in its place."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, h: Tensor, change: Tensor) -> Tensor:
        """Two tensors of one shape to a third."""
        return h + fn.dropout(change, self.p, self.training)


def rotary_tables(positions_N: Tensor, d_head: int) -> Rotary:
    """Angles of rotary position embeddings (RoFormer, section 3.2.2, equation 15).

    Computed once for all layers; no buffer, which ``model.bfloat16()`` would round.
    """
    pairs = torch.arange(0, d_head, 2, device=positions_N.device, dtype=torch.float32)
    angles = positions_N.float()[:, None, None] * ROPE_BASE ** (-pairs / d_head)
    cos, sin = angles.cos(), angles.sin()
    # Full width, with the sine negative in the first half: one product each, not four on halves.
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x_NHd: Tensor, rotary: Rotary) -> Tensor:
    """Rotates queries or keys by the angle of their position; component i is paired with i + d / 2.

    The convention of GPT-NeoX and of LLaMA in Hugging Face.
    """
    cos_N1d, sin_N1d = rotary
    a, b = x_NHd.chunk(2, dim=-1)
    turned = torch.addcmul(x_NHd * cos_N1d, torch.cat((b, a), dim=-1), sin_N1d)
    return turned.to(x_NHd.dtype)  # the float32 tables promote half precision


class LearnedPositions(nn.Module):
    """One learned vector for each position, as in BERT and GPT-2."""

    def __init__(self, max_positions: int, d_model: int) -> None:
        super().__init__()
        self.table = nn.Embedding(max_positions, d_model)
        init_weights(self)

    def forward(self, positions_N: Tensor, longest: int) -> Tensor:
        """Vectors, (N, D). ``longest`` is known on the host: no synchronisation."""
        if longest > self.table.num_embeddings:
            raise ValueError(
                f"a phrase of {longest} tokens (vectors before it included) does not fit "
                f"max_positions={self.table.num_embeddings}; raise it, cut phrases shorter or take "
                "positions='rope', which has no longest phrase"
            )
        return cast(Tensor, self.table(positions_N))


class LocalConvolution(nn.Module):
    """A convolution over a phrase's last K tokens: h + dropout(gelu(W [x_t .. x_(t-K+1)] + b)).

    Here x is the normed h. Attention learns n-grams late; with few labelled songs it is
    better to provide them (Kim 2014, arXiv 1408.5882, for text). It looks back only, so that
    it is the same in both directions and generation keeps the last ``width - 1`` tokens.
    """

    def __init__(self, d_model: int, width: int, dropout: float = 0.1) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"conv_width={width} must be 1 or more, or 0 for none")
        self.width, self.add = width, DropAdd(dropout)
        self.norm = nn.LayerNorm(d_model)
        self.project = nn.Linear(width * d_model, d_model)
        init_weights(self.project, 1 / math.sqrt(width * d_model))  # keeps the scale

    def forward(self, h_ND: Tensor, positions_N: Tensor) -> Tensor:
        """Packed vectors, (N, D) to (N, D); what lies before position 0 counts as zeros."""
        x_ND = self.norm(h_ND)
        back = [x_ND]
        for step in range(1, self.width):
            earlier_ND = fn.pad(x_ND, (0, 0, step, 0))[: len(x_ND)]
            back.append(earlier_ND * (positions_N >= step)[:, None])
        return cast(Tensor, self.add(h_ND, fn.gelu(self.project(torch.cat(back, dim=-1)))))


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2.2), with biases as DistilBERT."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        # Query, key and value in one product; the rows are laid out as nn.MultiheadAttention's.
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, h_ND: Tensor, rotary: Rotary | None, attend: Attend) -> Tensor:
        """Packed vectors, (N, D) to (N, D)."""
        qkv_N3Hd = self.qkv(h_ND).unflatten(-1, (3, self.n_heads, -1))
        if rotary is None:
            q_NHd, k_NHd, v_NHd = qkv_N3Hd.unbind(1)
        else:
            # Queries and keys are rotated together, as 2H heads: one pass over memory instead of
            # two.
            qk_NHd, v_NHd = qkv_N3Hd[:, :2].flatten(1, 2), qkv_N3Hd[:, 2]
            q_NHd, k_NHd = rotate(qk_NHd, rotary).chunk(2, dim=1)
        return cast(Tensor, self.out(attend(q_NHd, k_NHd, v_NHd).flatten(1)))


class FeedForward(nn.Module):
    """Two linear layers with GELU, or GEGLU (Shazeer 2020, arXiv 2002.05202, eq. 6), with three."""

    def __init__(self, d_model: int, d_ff: int, activation: str) -> None:
        super().__init__()
        self.gated = activation == "geglu"
        self.up = nn.Linear(d_model, 2 * d_ff if self.gated else d_ff)
        self.down = nn.Linear(d_ff, d_model)

    def forward(self, h_ND: Tensor) -> Tensor:
        """Packed vectors, (N, D) to (N, D)."""
        inner = self.up(h_ND)
        if self.gated:
            gate, inner = inner.chunk(2, dim=-1)
            return cast(Tensor, self.down(fn.gelu(gate) * inner))
        return cast(Tensor, self.down(fn.gelu(inner)))


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each with a residual; dropout falls on the two residuals only.

    ``pre`` normalises what goes into them (Xiong et al. 2020, arXiv 2002.04745), ``post`` the sum
    that comes out (Vaswani et al. 2017; DistilBERT), ``extra_norm`` the layer's output once more.
    """

    def __init__(
        self, d_model: int, n_heads: int, d_ff: int, norm: str, activation: str, dropout: float,
        extra_norm: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.pre = norm == "pre"
        self.attention = SelfAttention(d_model, n_heads)
        self.feed_forward = FeedForward(d_model, d_ff, activation)
        self.attention_norm = nn.LayerNorm(d_model)
        self.feed_forward_norm = nn.LayerNorm(d_model)
        self.output_norm = nn.LayerNorm(d_model) if extra_norm else nn.Identity()
        self.add = DropAdd(dropout)

    def forward(self, h_ND: Tensor, rotary: Rotary | None, attend: Attend) -> Tensor:
        """Packed vectors, (N, D) to (N, D)."""
        if self.pre:
            h_ND = self.add(h_ND, self.attention(self.attention_norm(h_ND), rotary, attend))
            h_ND = self.add(h_ND, self.feed_forward(self.feed_forward_norm(h_ND)))
        else:
            h_ND = self.attention_norm(self.add(h_ND, self.attention(h_ND, rotary, attend)))
            h_ND = self.feed_forward_norm(self.add(h_ND, self.feed_forward(h_ND)))
        return cast(Tensor, self.output_norm(h_ND))


class Encoder(nn.Module):
    """The transformer of every task, initialised as GPT-2 (Radford et al. 2019, section 2.3).

    Args:
        d_model, n_layers, n_heads, d_ff: The size; ``d_ff`` is the width inside the feed-forward.
        norm: ``pre`` (with a norm after the last layer) or ``post``.
        positions: ``rope`` or ``learned``.
        activation: ``gelu`` (exact, as BERT) or ``geglu``.
        dropout: Dropout of the residuals.
        attention_dropout: Dropout of the attention weights, without the fast kernels.
        max_positions: Longest phrase for ``learned``, vectors put before it included; ``rope`` has
            no limit and ignores it.
        conv_width: Tokens that a :class:`LocalConvolution` before the first layer sees; 0 for none.
        extra_norm: Another norm of each layer's output, as in the slides.

    Raises:
        ValueError: A setting that is unknown or does not fit the others.
    """

    def __init__(
        self, d_model: int, n_layers: int, n_heads: int, d_ff: int, norm: str = "pre",
        positions: str = "rope", activation: str = "gelu", dropout: float = 0.1,
        attention_dropout: float = 0.0, max_positions: int = 2048, conv_width: int = 0,
        extra_norm: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        check_choice("norm", norm, ("pre", "post"))
        check_choice("positions", positions, ("rope", "learned"))
        check_choice("activation", activation, ("gelu", "geglu"))
        if n_heads < 1 or d_model % n_heads:
            fits = ", ".join(str(n) for n in range(1, min(d_model, 64) + 1) if d_model % n == 0)
            raise ValueError(
                f"d_model={d_model} cannot be divided into n_heads={n_heads}; these do: {fits}"
            )
        self.d_model, self.d_head = d_model, d_model // n_heads  # D and d
        self.attention_dropout = attention_dropout
        self.positions: LearnedPositions | None = None
        if positions == "learned":
            self.positions = LearnedPositions(max_positions, d_model)
        elif self.d_head % 2:
            raise ValueError(
                "positions='rope' turns pairs of numbers, but the head width d_model / n_heads is "
                f"{self.d_head}, an odd number; change n_heads or d_model, or take positions="
                "'learned'"
            )
        self.local = LocalConvolution(d_model, conv_width, dropout) if conv_width else None
        self.layers = nn.ModuleList(
            EncoderLayer(d_model, n_heads, d_ff, norm, activation, dropout, extra_norm)
            for _ in range(n_layers)
        )
        self.final_norm = nn.LayerNorm(d_model) if norm == "pre" else nn.Identity()
        for name, module in self.layers.named_modules():
            if isinstance(module, nn.Linear):
                last = name.endswith(("attention.out", "feed_forward.down"))  # into the residual
                init_weights(module, INIT_STD / math.sqrt(2 * n_layers) if last else INIT_STD)

    def forward(
        self, h_ND: Tensor, cu_seqlens: Tensor, lengths: Sequence[int], *, causal: bool = False
    ) -> Tensor:
        """Encodes packed phrases, (N, D) to (N, D)."""
        positions = positions_N(cu_seqlens, len(h_ND))
        if self.local is not None:
            h_ND = self.local(h_ND, positions)
        h_ND, rotary = self.place(h_ND, positions, max(lengths))
        attend = partial(
            packed_attention, cu_seqlens=cu_seqlens, lengths=lengths, causal=causal,
            dropout_p=self.attention_dropout if self.training else 0.0,
        )  # fmt: skip
        return self.run_layers(h_ND, rotary, repeat(attend))

    def place(
        self, h_ND: Tensor, positions_N: Tensor, longest: int
    ) -> tuple[Tensor, Rotary | None]:
        """Adds learned vectors of the positions, or makes the table of angles for the layers."""
        if self.positions is None:
            return h_ND, rotary_tables(positions_N, self.d_head)
        return h_ND + self.positions(positions_N, longest), None

    def run_layers(self, h_ND: Tensor, rotary: Rotary | None, attends: Iterable[Attend]) -> Tensor:
        """All layers, each with its token mixing, and the last norm; (N, D) to (N, D)."""
        for layer, attend in zip(self.layers, attends, strict=False):
            h_ND = layer(h_ND, rotary, attend)
        return cast(Tensor, self.final_norm(h_ND))

    def new_state(
        self, n_rows: int, capacity: int, device: torch.device, dtype: torch.dtype
    ) -> KeyValueState:
        """Empty rows that are then written token by token: ``capacity`` of each at most."""
        return KeyValueState(self, n_rows, capacity, device, dtype)


# --- vectors of tokens to logits ------------------------------------------------------------------


class Pooling(nn.Module):
    """A packed phrase to one vector, without a loop over phrases.

    ``cls`` takes the first vector, which the caller puts there (Devlin et al. 2019, section 3);
    ``mean`` averages; ``attention`` weights tokens by a learned score u . tanh(W h + b) (Yang et
    al. 2016, Hierarchical Attention Networks, equations 5 to 7); ``mean_max`` projects mean and
    maximum (Howard and Ruder 2018, arXiv 1801.06146, section 3.3).
    """

    def __init__(self, kind: str, d_model: int) -> None:
        super().__init__()
        check_choice("pooling", kind, ("cls", "mean", "attention", "mean_max"))
        self.kind = kind
        self.score: nn.Sequential | None = None
        self.project: nn.Linear | None = None
        if kind == "mean_max":
            self.project = nn.Linear(2 * d_model, d_model)
            init_weights(self.project, 1 / math.sqrt(2 * d_model))
        if kind == "attention":
            hidden, score = nn.Linear(d_model, d_model), nn.Linear(d_model, 1, bias=False)
            init_weights(hidden)
            nn.init.zeros_(score.weight)  # Training starts from the mean.
            self.score = nn.Sequential(hidden, nn.Tanh(), score)

    def forward(self, h_ND: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Packed vectors, (N, D), to one for each phrase, (B, D), of the same type."""
        if self.kind == "cls":
            return h_ND[cu_seqlens[:-1].long()]
        (N, D), B = h_ND.shape, len(cu_seqlens) - 1
        segment_N = segments_N(cu_seqlens, N)
        # Summed in float32: bfloat16 loses small terms of a long phrase.
        weighted_ND = h_ND.float()
        if self.score is not None:  # a softmax within each phrase
            score_N = self.score(h_ND).squeeze(-1).float()
            # The maximum only keeps the exponential from overflow; it cancels: no gradient.
            top_B = score_N.new_full((B,), -torch.inf)
            top_B = top_B.scatter_reduce(0, segment_N, score_N.detach(), "amax")
            exp_N = (score_N - top_B[segment_N]).exp()
            total_B = score_N.new_zeros(B).index_add(0, segment_N, exp_N)
            weighted_ND = weighted_ND * (exp_N / total_B[segment_N])[:, None]
        h_BD = weighted_ND.new_zeros(B, D).index_add(0, segment_N, weighted_ND)
        if self.score is None:
            h_BD = h_BD / cu_seqlens.diff()[:, None]
        h_BD = h_BD.to(h_ND.dtype)
        if self.project is None:
            return h_BD
        low_BD, index_ND = h_ND.new_full((B, D), -torch.inf), segment_N[:, None].expand(-1, D)
        max_BD = low_BD.scatter_reduce(0, index_ND, h_ND, "amax")
        return cast(Tensor, self.project(torch.cat((h_BD, max_BD), dim=-1)))


class LabelHead(nn.Module):
    """Logits of one label, and its loss: linear, GELU, dropout, linear, as DistilBERT's head.

    Args:
        label: Name of the label, for instance ``genre``.
        classes: Its class names, in the order of the logits.
        d_model: Model width D.
        class_weights: Weight of each class in the loss, length C; equal weights if None.
        label_smoothing: Share of the target spread over all classes (Szegedy et al. 2016,
            section 7).
        dropout: Dropout before the last layer.
        linear: Leave the hidden layer out, for a linear probe (Alain and Bengio 2017, arXiv
            1610.01644).

    Raises:
        ValueError: Smoothing outside 0 to 1.
    """

    def __init__(
        self, label: str, classes: Sequence[str], d_model: int,
        class_weights: Sequence[float] | Tensor | None = None, label_smoothing: float = 0.0,
        dropout: float = 0.1, linear: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} is not between 0 and 1")
        weights = torch.ones(len(classes)) if class_weights is None else class_weights
        self.label, self.classes = label, tuple(classes)
        self.label_smoothing = label_smoothing
        self.weight_C = nn.Buffer(torch.as_tensor(weights, dtype=torch.float32).clone())
        self.hidden = None if linear else nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(d_model, len(classes))
        init_weights(self)

    def forward(self, h_BD: Tensor) -> Tensor:
        """Vectors of the phrases, (B, D), to logits of the classes, (B, C)."""
        if self.hidden is not None:
            h_BD = fn.gelu(self.hidden(h_BD))
        return cast(Tensor, self.out(self.dropout(h_BD)))

    def loss(self, logits_BC: Tensor, batch: Batch) -> Tensor:
        """Weighted cross-entropy with label smoothing over the phrases whose label is known.

        Its sum over the batch is divided by the class weights of the targets: of this batch alone,
        as ``F.cross_entropy``, or of the whole optimizer step (``batch.step_counts``). Then the
        losses of a step's batches add up to that of one large batch, however unequal they are.

        Returns:
            A float32 scalar; 0, and still connected to the graph, if nothing is known.
        """
        target_B, counts_C = batch.labels[self.label], batch.step_counts.get(self.label)
        weight_C = self.weight_C.float()
        sum_ = fn.cross_entropy(
            logits_BC.float(), target_B, weight_C, ignore_index=UNKNOWN, reduction="sum",
            label_smoothing=self.label_smoothing,
        )  # fmt: skip
        if counts_C is None:
            total = (weight_C[target_B.clamp_min(0)] * (target_B != UNKNOWN)).sum()
        else:
            total = (counts_C * weight_C).sum() / batch.step_batches
        # No known label, or only classes of weight 0: F.cross_entropy would return nan or inf.
        return torch.where(total > 0, sum_ / torch.where(total > 0, total, 1.0), sum_ * 0.0)


class PhraseModel(nn.Module):
    """Embedding and backbone of every model; pretrained weights load under these names."""

    def __init__(self, embedding: FieldEmbedding, backbone: nn.Module) -> None:
        super().__init__()
        self.embedding, self.backbone = embedding, backbone


class PhraseClassifier(PhraseModel):
    """Embedding, backbone, pooling, and one head for each label.

    Args:
        embedding: Token ids to vectors.
        backbone: :class:`Encoder`, or any other backbone (see the module).
        pooling: With ``cls`` a learned vector precedes each phrase and takes one position.
        heads: One for each label.
        masked: Hides tokens in training and predicts them beside the labels; None without.

    Raises:
        ValueError: No head, or two heads for one label.
    """

    def __init__(
        self, embedding: FieldEmbedding, backbone: nn.Module, pooling: Pooling,
        heads: Sequence[LabelHead], masked: MaskedLoss | None = None,
    ) -> None:  # fmt: skip
        labels = [head.label for head in heads]
        if not heads or len(set(labels)) < len(labels):
            raise ValueError(f"a classifier needs one head for each label, got {labels}")
        super().__init__(embedding, backbone)
        self.pooling = pooling
        self.heads = nn.ModuleList(heads)  # a ModuleDict refuses labels such as "type"
        self.masked = masked
        self.cls_D: nn.Parameter | None = None
        if pooling.kind == "cls":
            self.cls_D = nn.Parameter(INIT_STD * torch.randn(embedding.d_model))

    def label_heads(self) -> dict[str, LabelHead]:
        """The head of each label."""
        return {head.label: head for head in cast(Iterable[LabelHead], self.heads)}

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One vector for each phrase, (B, D), and one for each token, (N, D), without CLS."""
        cu_seqlens, lengths = batch.cu_seqlens, batch.lengths
        h = self.embedding(batch.ids_NF, cu_seqlens)
        tokens_N: Tensor | slice = slice(None)
        if self.cls_D is not None:
            cls_BPD = self.cls_D.expand(batch.n_phrases, 1, -1)
            h, cu_seqlens, lengths, tokens_N = insert_prefix(h, cu_seqlens, lengths, cls_BPD)
        h = self.backbone(h, cu_seqlens, lengths, causal=False)
        return self.pooling(h, cu_seqlens), h[tokens_N]

    def logits(self, h_BD: Tensor) -> dict[str, Tensor]:
        """Logits of each label from the phrases' vectors, ``{label: logits_BC}``."""
        return {label: head(h_BD) for label, head in self.label_heads().items()}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits of each label, ``{label: logits_BC}``."""
        return self.logits(self.encode(batch)[0])

    def loss(self, logits: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum over the labels, and ``{label: loss}``."""
        heads = self.label_heads()
        losses = {label: head.loss(logits[label], batch) for label, head in heads.items()}
        return sum(losses.values(), torch.zeros((), device=batch.ids_NF.device)), losses
