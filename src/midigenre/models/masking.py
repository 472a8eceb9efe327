"""Masked modelling: which tokens are hidden, what the model sees instead, and their prediction.

    N packed tokens   F fields of a token   B phrases   A attributes   V ids of all fields
    D model width   M tokens that hide something

Every token belongs to a *group*, whose tokens are hidden together. Each group is hidden with the
same probability, so that the share of hidden tokens is that probability whatever the groups' sizes.

============  ====================================================================================
strategy      a group is
============  ====================================================================================
``element``   one token. Much can be copied from the other tokens of the same note
``compound``  the tokens of a note: those of a step where a step has several fields; in vocabularies
              with one field a run of ``Program``, pitch, ``Velocity`` and ``Duration`` tokens
``bar``       one attribute in one bar (MusicBERT, Zeng et al. 2021, arXiv 2106.05630, section 3.3):
              nothing can be copied from a neighbour, which often has the same value
============  ====================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from midigenre.errors import UserError
from midigenre.models.sequences import segments_N
from midigenre.models.transformer import FieldEmbedding, PhraseModel, check_choice, init_weights
from midigenre.spec import Batch, TokenSpec

STRATEGIES = ("element", "compound", "bar")

_SAME = {"PitchDrum": "Pitch", "DrumOn": "NoteOn", "DrumOff": "NoteOff"}
"""Drums have their own tokens; here they are values of the same attribute."""

_OTHER, _BEFORE, _OPENS, _BEHIND = range(4)
_KIND = {
    "Program": _BEFORE, "Velocity": _BEHIND, "Duration": _BEHIND,
    "Pitch": _OPENS, "PitchDrum": _OPENS, "NoteOn": _OPENS, "DrumOn": _OPENS, "NoteOff": _OPENS,
    "DrumOff": _OPENS, "PitchIntervalTime": _OPENS, "PitchIntervalChord": _OPENS,
}  # fmt: skip
"""Place of each type in the run of tokens that forms a note."""

NOTE_TYPES = tuple(_KIND)
"""Types of tokens that are attributes of notes; all others give position and context."""

NEVER = ("PAD", "BOS", "EOS", "MASK", "Ignore")
"""Types of tokens that are never hidden, and never replace others."""


class Masking(nn.Module):
    """Chooses tokens to hide and what replaces them; call it with a batch's tokens.

    Of the hidden tokens the model sees MASK, another token of the same type, or the token itself,
    so that it must represent every token (BERT, Devlin et al. 2019, arXiv 1810.04805,
    section 3.1). Hiding 30% trains better than BERT's 15% (Wettig et al. 2023, arXiv 2202.08005;
    ModernBERT, Warner et al. 2024, arXiv 2412.13663). Nothing here synchronises with the device.

    Args:
        spec: The vocabulary.
        strategy: ``element``, ``compound`` or ``bar`` (see the module).
        share: Expected share of the tokens that may be hidden which are hidden.
        replace: Shares of the hidden tokens that are seen as MASK, as another token of their type,
            and as they are.
        structure: Whether tokens that are not attributes of notes (``Bar``, ``Position``,
            ``Tempo``, time shifts ...) may be hidden too, as in MusicBERT.

    Attributes:
        attributes: Names of what may be hidden, A of them: token types, those of drums counted with
            the others.
        fields: Columns in which something may be hidden.

    Raises:
        UserError: The vocabulary has no MASK.
        ValueError: A setting is out of range, ``bar`` with a vocabulary that has no bars, or a
            vocabulary in which there is nothing to hide.
    """

    def __init__(
        self, spec: TokenSpec, strategy: str = "compound", share: float = 0.3,
        replace: Sequence[float] = (0.8, 0.1, 0.1), structure: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        check_choice("strategy", strategy, STRATEGIES)
        check_share("share", share)
        if len(replace) != 3 or min(replace) < 0 or not math.isclose(sum(replace), 1, abs_tol=1e-6):
            raise ValueError(f"replace={list(replace)} must be three shares with the sum 1")
        mask = spec.special("MASK")
        if mask is None:
            known = [t for t in ("PAD", "BOS", "EOS") if spec.special(t) is not None]
            raise UserError(
                f"tokenizer {spec.name!r} has no MASK token, which a masked model needs; add "
                f"tokenizer.special_tokens=[{','.join([*known, 'MASK'])}] to the command"
            )
        if strategy == "bar" and spec.bars == "none":
            raise ValueError(
                f"strategy=bar needs bars, which tokenizer {spec.name!r} does not mark; take "
                "compound or element"
            )
        self.strategy, self.share, self.replace = strategy, share, tuple(replace)
        self.bars = spec.bars
        types_V = [t for field in spec.fields for t in field.types]
        hidden = {t: t not in NEVER and (structure or t in NOTE_TYPES) for t in types_V}
        self.attributes = tuple(dict.fromkeys(_SAME.get(t, t) for t in types_V if hidden[t]))
        if not self.attributes:
            raise ValueError(f"tokenizer {spec.name!r} has no token that may be hidden")
        self.fields = tuple(
            f for f, field in enumerate(spec.fields) if any(hidden[t] for t in field.types)
        )
        self.bar_field = next((f for f, x in enumerate(spec.fields) if x.is_type("Bar").any()), 0)
        number = {name: i for i, name in enumerate(self.attributes)}
        # The ids of each type of each field side by side.
        names = [(f, type_) for f, field in enumerate(spec.fields) for type_ in field.types]
        numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
        type_V = torch.tensor([numbers[name] for name in names])
        count, id_V = type_V.bincount(), torch.cat([torch.arange(n) for n in spec.sizes])

        def table(values: Sequence[int] | Tensor) -> nn.Buffer:
            return nn.Buffer(torch.as_tensor(values), persistent=False)

        self.base_F = table(torch.tensor([0, *spec.sizes]).cumsum(0)[:-1])  # an id's of all fields
        self.mask_F = table(mask)
        self.attribute_V = table([number[_SAME.get(t, t)] if hidden[t] else -1 for t in types_V])
        self.first_V = table((count.cumsum(0) - count)[type_V])  # of its type in member_V
        self.count_V = table(count[type_V])
        self.member_V = table(id_V[type_V.argsort(stable=True)])
        self.kind_V = table([_KIND.get(t, _OTHER) for t in types_V])
        self.bar_V = table([t == "Bar" for t in types_V])

    def forward(
        self, ids_NF: Tensor, cu_seqlens: Tensor, *, share: float | None = None,
        keys_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Chooses what is hidden.

        Args:
            ids_NF: The tokens, int64, shape (N, F).
            cu_seqlens: Phrase boundaries, integer, shape (B + 1,).
            share: Another share than :attr:`share`.
            keys_B: A number for each phrase, int64. What is hidden of a phrase is then a function
                of its number and its tokens alone, on every device and in any company; at least
                one token of each phrase is hidden, if any may be. Without, PyTorch's generator of
                the device decides, and at least one token of the batch is hidden.

        Returns:
            The ids that the model sees, and which tokens it must predict (bool), both (N, F).
        """
        N, F = ids_NF.shape
        of_N = segments_N(cu_seqlens, N)
        place_N = torch.arange(N, device=ids_NF.device) - cu_seqlens[:-1].long()[of_N]
        # Numbers from 0 to 1 for each step, of several streams: drawn, or made from key and place.
        seed_N1 = (
            None
            if keys_B is None
            else splitmix64_torch(splitmix64_torch(keys_B)[of_N] + place_N)[:, None]
        )

        def noise(width: int, stream: int) -> Tensor:
            if seed_N1 is None:
                return torch.rand((N, width), device=ids_NF.device, dtype=torch.float32)
            column = torch.arange(width, device=ids_NF.device) + (stream << 32)
            return (splitmix64_torch(seed_N1 + column) >> 40 & 0xFFFFFF).float() * 2**-24

        attribute_NF = self.attributes_NF(ids_NF)
        group_NF = self._chances(ids_NF, attribute_NF, place_N == 0, noise)
        # A token that may not be hidden never is, and never counts as the least.
        chance_NF = group_NF.masked_fill(attribute_NF < 0, 2.0)
        if keys_B is None:
            least = chance_NF.amin() if N else chance_NF.sum()
        else:
            of_phrase_B = torch.full((len(keys_B),), 2.0, device=ids_NF.device)
            of_phrase_B = of_phrase_B.scatter_reduce(0, of_N, chance_NF.amin(1), "amin")
            least = of_phrase_B[of_N, None]
        limit = self.share if share is None else share
        hidden_NF = ((chance_NF < limit) | (chance_NF <= least)) & (attribute_NF >= 0)
        masked, drawn, _ = self.replace
        which_NF, other_NF = noise(F, 1), noise(F, 2)
        token_NF = ids_NF + self.base_F
        others_NF = self.count_V[token_NF]
        drawn_NF = self.member_V[self.first_V[token_NF] + (other_NF * others_NF).long()]
        seen_NF = torch.where(hidden_NF & (which_NF < masked), self.mask_F, ids_NF)
        is_drawn_NF = hidden_NF & (which_NF >= masked) & (which_NF < masked + drawn)
        return torch.where(is_drawn_NF, drawn_NF, seen_NF), hidden_NF

    def attributes_NF(self, ids_NF: Tensor) -> Tensor:
        """Index of each token in :attr:`attributes`, -1 where it may not be hidden; (N, F)."""
        return self.attribute_V[ids_NF + self.base_F]

    def hide(self, ids_NF: Tensor, hidden_NF: Tensor) -> Tensor:
        """The ids with MASK for every token that is hidden, shape (N, F)."""
        return torch.where(hidden_NF, self.mask_F, ids_NF)

    def _chances(
        self, ids_NF: Tensor, attribute_NF: Tensor, begins_N: Tensor,
        noise: Callable[[int, int], Tensor],
    ) -> Tensor:  # fmt: skip
        """A number from 0 to 1 for every token, the same for those of a group; (N, F)."""
        F = ids_NF.shape[1]
        if self.strategy == "element":
            return noise(F, 0)
        if self.strategy == "bar":
            bar_N = ids_NF[:, self.bar_field]
            by_field = self.bars == "field"
            new_N = bar_N != bar_N.roll(1) if by_field else self.bar_V[
                bar_N + self.base_F[self.bar_field]
            ]  # fmt: skip
            # The numbers of the bar's first step count for the whole bar.
            first_N = _first_step(begins_N | new_N)
            return noise(len(self.attributes), 0)[first_N].gather(1, attribute_NF.clamp(min=0))
        if F > 1:
            return noise(1, 0).expand(-1, F)
        kind_N = self.kind_V[ids_NF[:, 0]]
        last_N = kind_N.roll(1)
        inside_N = (kind_N == _BEHIND) & (last_N != _OTHER)
        inside_N |= (kind_N == _OPENS) & (last_N == _BEFORE)
        return noise(1, 0)[_first_step(begins_N | ~inside_N)]


def _first_step(begins_N: Tensor) -> Tensor:
    """The step at which the group of each step begins, shape (N,)."""
    place_N = torch.arange(len(begins_N), device=begins_N.device)
    return torch.where(begins_N, place_N, 0).cummax(0).values


def splitmix64_torch(x: Tensor) -> Tensor:
    """Scrambles int64 numbers: SplitMix64 (Steele et al. 2014), with the sums that wrap around."""
    x = x + (0x9E3779B97F4A7C15 - (1 << 64))
    for bits, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ _shifted(x, bits)) * (factor - (1 << 64))
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """A right shift without the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def check_share(name: str, share: float) -> None:
    """Raises a ValueError unless a share is above 0 and at most 1."""
    if not 0 < share <= 1:
        raise ValueError(f"{name}={share} must be above 0 and at most 1")


class MaskedHead(nn.Module):
    """Linear, GELU, norm, and a linear layer for each field: BERT's head, for compound steps too.

    Each hidden field is predicted from the context, independently of the token's other hidden ones
    (MusicBERT, Zeng et al. 2021, arXiv 2106.05630, section 3.2). Logits are made only of steps that
    hide something and only of the fields that they hide, which is most of a head's work.

    Args:
        sizes: Vocabulary size of each field (``TokenSpec.sizes``), length F.
        d_model: Model width D.
        fields: Columns in which tokens are hidden (:attr:`Masking.fields`); the others have no
            weights.
    """

    def __init__(self, sizes: Sequence[int], d_model: int, fields: Sequence[int]) -> None:
        super().__init__()
        self.fields = tuple(fields)
        self.hidden = nn.Linear(d_model, d_model)
        self.norm = nn.LayerNorm(d_model)
        self.out = nn.ModuleDict({str(f): nn.Linear(d_model, sizes[f]) for f in self.fields})
        init_weights(self)

    def loss(self, h_ND: Tensor, ids_NF: Tensor, hidden_NF: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of every hidden token, and whether it was the likeliest.

        Waits for the device once, to learn how many tokens are hidden.

        Args:
            h_ND: The backbone's output for the steps with their tokens hidden, shape (N, D).
            ids_NF: The true tokens, int64, shape (N, F).
            hidden_NF: Which are hidden, bool, shape (N, F); in columns of :attr:`fields` alone.

        Returns:
            nats_NF, float32, 0 where nothing is hidden; hits_NF, bool, False there.
        """
        any_N = hidden_NF.any(1)
        of_field = [hidden_NF[:, f].sum() for f in self.fields]
        n_steps, *counts = torch.stack([any_N.sum(), *of_field]).tolist()
        steps_M = torch.nonzero_static(any_N, size=n_steps)[:, 0]
        h_MD = self.norm(fn.gelu(self.hidden(h_ND[steps_M])))
        steps, columns, nats, hits = [], [], [], []
        for field, count in zip(self.fields, counts, strict=True):
            # Even without rows: a weight without a gradient would block several processes.
            rows = torch.nonzero_static(hidden_NF[steps_M, field], size=count)[:, 0]
            logits_nV = self.out[str(field)](h_MD[rows])
            target_n = ids_NF[steps_M[rows], field]
            nats.append(fn.cross_entropy(logits_nV.float(), target_n, reduction="none"))
            hits.append(logits_nV.detach().argmax(-1) == target_n)
            steps.append(steps_M[rows])
            columns.append(torch.full_like(rows, field))
        where = torch.cat(steps), torch.cat(columns)
        nats_NF = torch.zeros(ids_NF.shape, device=h_ND.device).index_put(where, torch.cat(nats))
        hits_NF = torch.zeros_like(hidden_NF).index_put(where, torch.cat(hits))
        return nats_NF, hits_NF


class MaskedModel(PhraseModel):
    """Embedding, backbone run in both directions, and a head that predicts hidden tokens."""

    def __init__(
        self, embedding: FieldEmbedding, backbone: nn.Module, masking: Masking, head: MaskedHead
    ) -> None:
        super().__init__(embedding, backbone)
        self.masking, self.head = masking, head

    def forward(self, batch: Batch, seen_NF: Tensor) -> Tensor:
        """The backbone's output for a batch with these tokens in place of its own, shape (N, D)."""
        h_ND: Tensor = self.backbone(
            self.embedding(seen_NF, batch.cu_seqlens), batch.cu_seqlens, batch.lengths, causal=False
        )
        return h_ND

    def loss(
        self, batch: Batch, share: float | None = None, keys_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Hides tokens of a batch as :class:`Masking` does, and predicts them.

        Returns:
            nats_NF and hits_NF of :meth:`MaskedHead.loss`, and which tokens were hidden.
        """
        seen_NF, hidden_NF = self.masking(
            batch.ids_NF, batch.cu_seqlens, share=share, keys_B=keys_B
        )
        return *self.head.loss(self(batch, seen_NF), batch.ids_NF, hidden_NF), hidden_NF

    def predict(self, batch: Batch, hidden_NF: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts given tokens, all of them seen as MASK: nats_NF and hits_NF."""
        seen_NF = self.masking.hide(batch.ids_NF, hidden_NF)
        return self.head.loss(self(batch, seen_NF), batch.ids_NF, hidden_NF)


class MaskedLoss(nn.Module):
    """Masked modelling beside another loss, ``weight`` (above 0) times its mean nats."""

    def __init__(self, masking: Masking, head: MaskedHead, weight: float) -> None:
        super().__init__()
        if not weight > 0:
            raise ValueError(f"a weight of masked modelling must be above 0, got {weight}")
        self.masking, self.head, self.weight = masking, head, weight

    def hide(self, batch: Batch) -> tuple[Batch, Tensor]:
        """The batch as the model sees it, and the mask of what it must predict, (N, F)."""
        seen_NF, hidden_NF = self.masking(batch.ids_NF, batch.cu_seqlens)
        return replace(batch, ids_NF=seen_NF), hidden_NF

    def forward(self, h_ND: Tensor, ids_NF: Tensor, hidden_NF: Tensor) -> Tensor:
        """Mean nats of a hidden token, from the vectors of the batch that was seen, (N, D).

        0, and still connected to the graph, if none is hidden.
        """
        nats_NF, _ = self.head.loss(h_ND, ids_NF, hidden_NF)
        return nats_NF.sum() / hidden_NF.sum().clamp_min(1)
