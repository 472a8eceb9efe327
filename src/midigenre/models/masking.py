"""Which tokens a masked model must foretell, and what it sees in their place.

    N packed tokens   F fields of a step   B phrases   A attributes   V ids of all fields

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
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from midigenre.errors import UserError
from midigenre.models.checks import check_choice
from midigenre.models.positions import segments_N
from midigenre.spec import TokenSpec

Strategy = Literal["element", "compound", "bar"]
STRATEGIES = ("element", "compound", "bar")

_SAME = {"PitchDrum": "Pitch", "DrumOn": "NoteOn", "DrumOff": "NoteOff"}
"""Drums have tokens of their own; for a model they are values of the same attribute."""

_OPENS = ("Pitch", "PitchDrum", "NoteOn", "DrumOn", "NoteOff", "DrumOff",
          "PitchIntervalTime", "PitchIntervalChord")  # fmt: skip
_BEFORE = ("Program",)
_BEHIND = ("Velocity", "Duration")

NOTE_TYPES = (*_OPENS, *_BEFORE, *_BEHIND)
"""Types of tokens that say what a note is; all others say where notes stand, and in what frame."""

NEVER = ("PAD", "BOS", "EOS", "MASK", "Ignore")
"""Types of tokens that are never hidden, and never stand in for others."""


class Masking(nn.Module):
    """Chooses tokens to hide and what stands in their place; call it with a batch's tokens.

    Of the hidden tokens the model sees MASK, another token of the same type, or the token itself,
    so that it must make something of every token (BERT, Devlin et al. 2019, arXiv 1810.04805,
    section 3.1). Hiding 30% trains better than BERT's 15% (Wettig et al. 2023, arXiv 2202.08005;
    ModernBERT, Warner et al. 2024, arXiv 2412.13663).

    Nothing here waits for the device, and there is no loop over phrases.

    Args:
        spec: The vocabulary.
        strategy: ``element``, ``compound`` or ``bar`` (see the module).
        share: Expected share of the tokens that may be hidden which are hidden.
        replace: Shares of the hidden tokens that are seen as MASK, as another token of their type,
            and as they are.
        structure: Whether tokens that are no attributes of notes (``Bar``, ``Position``, ``Tempo``,
            ``TimeSig``, ``Family``, time shifts ...) may be hidden too, as in MusicBERT. Most of
            them can be copied from a neighbour where each step repeats them.

    Attributes:
        attributes: Names of what may be hidden, A of them: token types, those of drums counted with
            the others.
        fields: Columns in which something may be hidden.

    Raises:
        UserError: The vocabulary has no MASK.
        ValueError: A setting is out of range, ``bar`` with a vocabulary that has no bars, or a
            vocabulary in which there is nothing to hide.
    """

    base_F: Tensor
    mask_F: Tensor
    attribute_V: Tensor
    first_V: Tensor
    count_V: Tensor
    member_V: Tensor
    kind_V: Tensor
    bar_V: Tensor

    def __init__(
        self,
        spec: TokenSpec,
        strategy: Strategy = "compound",
        share: float = 0.3,
        replace: Sequence[float] = (0.8, 0.1, 0.1),
        structure: bool = False,
    ) -> None:
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
        self.several, self.bars = len(spec.fields) > 1, spec.bars
        types_V = [t for field in spec.fields for t in field.types]
        hidden = {t: t not in NEVER and (structure or t in NOTE_TYPES) for t in types_V}
        self.attributes = tuple(dict.fromkeys(_SAME.get(t, t) for t in types_V if hidden[t]))
        if not self.attributes:
            raise ValueError(f"tokenizer {spec.name!r} has no token that may be hidden")
        base_F = torch.tensor([0, *spec.sizes]).cumsum(0)[:-1]
        number = {name: i for i, name in enumerate(self.attributes)}
        attribute_V = torch.tensor([number[_SAME.get(t, t)] if hidden[t] else -1 for t in types_V])
        first_V, count_V, member_V = _ids_by_type(spec)
        self.fields = tuple(
            f for f, field in enumerate(spec.fields) if any(hidden[t] for t in field.types)
        )
        bar_field = next((f for f, x in enumerate(spec.fields) if x.is_type("Bar").any()), 0)
        self.bar_field = bar_field
        for name, table in {
            "base_F": base_F,
            "mask_F": torch.tensor(mask),
            "attribute_V": attribute_V,
            "first_V": first_V,
            "count_V": count_V,
            "member_V": member_V,
            "kind_V": torch.tensor([_kind(t) for t in types_V]),
            "bar_V": torch.tensor([t == "Bar" for t in types_V]),
        }.items():
            self.register_buffer(name, table, persistent=False)

    def forward(
        self,
        ids_NF: Tensor,
        cu_seqlens: Tensor,
        generator: torch.Generator | None = None,
        *,
        share: float | None = None,
        keys_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Chooses what is hidden.

        Args:
            ids_NF: The tokens, int64, shape (N, F).
            cu_seqlens: Phrase boundaries, integer, shape (B + 1,).
            generator: Where random numbers come from; PyTorch's own for the device if None. At
                least one token of the batch is hidden then, if any may be.
            share: Another share than :attr:`share`.
            keys_B: A number for each phrase, int64. What is hidden of a phrase is then a function
                of its number and its tokens alone, on every device and in any company; at least
                one token of each phrase is hidden, if any may be.

        Returns:
            The ids that the model sees, and which tokens it must foretell (bool), both (N, F).
        """
        N, F = ids_NF.shape
        of_N = segments_N(cu_seqlens, N)
        start_N = cu_seqlens[:-1].long()[of_N]
        noise = _Noise(of_N, start_N, generator, keys_B)
        attribute_NF = self.attributes_NF(ids_NF)
        group_NF = self._chances(ids_NF, attribute_NF, start_N, noise)
        # What may not be hidden has no chance, and is not the least either.
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
        self, ids_NF: Tensor, attribute_NF: Tensor, start_N: Tensor, noise: _Noise
    ) -> Tensor:
        """A number from 0 to 1 for every token, the same for those of a group; (N, F)."""
        N, F = ids_NF.shape
        if self.strategy == "element":
            return noise(F, 0)
        place_N = torch.arange(N, device=ids_NF.device)
        begins_N = place_N == start_N
        if self.strategy == "bar":
            first_N = self._first_step(begins_N | self._bar_begins_N(ids_NF))
            # The numbers of the bar's first step count for the whole bar.
            return noise(len(self.attributes), 0)[first_N].gather(1, attribute_NF.clamp(min=0))
        if self.several:
            return noise(1, 0).expand(N, F)
        kind_N = self.kind_V[ids_NF[:, 0]]
        last_N = kind_N.roll(1)
        goes_on_N = (kind_N == _KINDS["behind"]) & (last_N != _KINDS["other"])
        goes_on_N |= (kind_N == _KINDS["opens"]) & (last_N == _KINDS["before"])
        first_N = self._first_step(begins_N | ~goes_on_N)
        return noise(1, 0)[first_N]

    def _bar_begins_N(self, ids_NF: Tensor) -> Tensor:
        bar_N = ids_NF[:, self.bar_field]
        if self.bars == "field":
            return bar_N != bar_N.roll(1)
        return self.bar_V[bar_N + self.base_F[self.bar_field]]

    @staticmethod
    def _first_step(begins_N: Tensor) -> Tensor:
        """The step at which the group of each step begins, shape (N,)."""
        place_N = torch.arange(len(begins_N), device=begins_N.device)
        first_N: Tensor = torch.where(begins_N, place_N, 0).cummax(0).values
        return first_N


class _Noise:
    """Numbers from 0 to 1 for each step: drawn, or made from each phrase's key and the place in it.

    Args:
        of_N: Phrase of each step.
        start_N: First step of that phrase.
        generator: Draws them where there are no keys.
        keys_B: A number for each phrase, or None.
    """

    def __init__(
        self,
        of_N: Tensor,
        start_N: Tensor,
        generator: torch.Generator | None,
        keys_B: Tensor | None,
    ) -> None:
        self._n, self._device, self._generator = len(of_N), of_N.device, generator
        self._seed_N: Tensor | None = None
        if keys_B is not None:
            place_N = torch.arange(self._n, device=self._device) - start_N
            self._seed_N = mix(mix(keys_B)[of_N] + place_N)

    def __call__(self, width: int, stream: int) -> Tensor:
        """Float32, shape (N, width); each stream has numbers of its own."""
        if self._seed_N is None:
            return torch.rand(
                self._n, width, generator=self._generator, device=self._device,
                dtype=torch.float32,
            )  # fmt: skip
        column = torch.arange(width, device=self._device) + (stream << 32)
        bits_NW = mix(self._seed_N[:, None] + column)
        return (bits_NW >> 40 & 0xFFFFFF).float() * 2**-24


def mix(x: Tensor) -> Tensor:
    """Scrambles int64 numbers: SplitMix64 (Steele et al. 2014), with the sums that wrap around."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def check_share(name: str, share: float) -> None:
    """Refuses a share that is not above 0 and at most 1.

    Raises:
        ValueError: Naming the setting and the value.
    """
    if not 0 < share <= 1:
        raise ValueError(f"{name}={share} must be above 0 and at most 1")


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def _shifted(x: Tensor, bits: int) -> Tensor:
    """A right shift without the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


_KINDS = {"other": 0, "before": 1, "opens": 2, "behind": 3}


def _kind(type_: str) -> int:
    """Where tokens of a type stand in the run of tokens that is a note."""
    for kind, types in (("before", _BEFORE), ("opens", _OPENS), ("behind", _BEHIND)):
        if type_ in types:
            return _KINDS[kind]
    return _KINDS["other"]


def _ids_by_type(spec: TokenSpec) -> tuple[Tensor, Tensor, Tensor]:
    """The ids of each type side by side, field by field.

    Returns:
        For each id where those of its type begin in the table, how many they are, and the table;
        all of shape (V,).
    """
    first: list[int] = []
    count: list[int] = []
    member: list[int] = []
    for field in spec.fields:
        ids_of: dict[str, list[int]] = {}
        for i, type_ in enumerate(field.types):
            ids_of.setdefault(type_, []).append(i)
        begin = {}
        for type_, ids in ids_of.items():
            begin[type_] = len(member)
            member += ids
        first += [begin[t] for t in field.types]
        count += [len(ids_of[t]) for t in field.types]
    return torch.tensor(first), torch.tensor(count), torch.tensor(member)
