"""The types that data and models share: token vocabulary, labels, batch.

Shape suffixes, used in every file of the project::

    B phrases in a batch      N packed tokens of all phrases   T steps of one song or phrase
    F fields of a step        D model width                    H heads, d width of a head
    C classes of a label

A *token stream* is ``ids_TF``: T steps of F fields. REMI and MIDI-like have F = 1; CP and Octuple
have several. A *batch* is packed: the phrases lie end to end in ``ids_NF`` and ``cu_seqlens`` holds
the boundaries, so that there is no padding to leak or to pay for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from midigenre import registry

if TYPE_CHECKING:  # processes that prepare never need it: a second and 200 MB each
    import torch
    from torch import Tensor

SPLITS = ("train", "val", "test")

UNKNOWN = -1
"""Label index of a song whose label is not known; such phrases add nothing to that label's loss."""

BarKind = Literal["token", "field", "none"]
"""Where bars are in a token stream.

``token``: a token of type ``Bar`` opens each bar, one after the other (REMI, CP);
``field``: each step carries its bar number (Octuple); ``none``: time shifts run across barlines, so
that a phrase is not a slice of the song (MIDI-like, TSD).
"""


@dataclass(frozen=True)
class Field:
    """One column of a token stream and its vocabulary.

    Attributes:
        name: ``token`` for single-field streams, else the attribute (``Pitch``, ``Duration`` ...).
        tokens: ``Type_Value`` of each id, MidiTok's spelling (``Pitch_60``, ``TimeSig_3/4``).
    """

    name: str
    tokens: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def types(self) -> tuple[str, ...]:
        """Type of each id, for instance ``Pitch``."""
        return tuple(token.split("_", 1)[0] for token in self.tokens)

    @cached_property
    def values(self) -> tuple[str, ...]:
        """Value of each id as text, for instance ``60`` or ``3/4``; ``None`` where it has none."""
        return tuple(token.split("_", 1)[1] for token in self.tokens)

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Id of each token."""
        return {token: i for i, token in enumerate(self.tokens)}

    def is_type(self, *types: str) -> NDArray[np.bool_]:
        """Mask over the ids, shape (vocabulary,): true where the type is one of ``types``."""
        return np.array([t in types for t in self.types])


@dataclass(frozen=True)
class TokenSpec:
    """What a model and a loader must know about a tokenizer; stored with shards and runs.

    Attributes:
        name: The tokenizer's name in ``conf/tokenizer``.
        fields: One entry for each column of ``ids_TF``.
        bars: Where bars are in the stream; ``none`` means that phrases are encoded from notes.
        max_bars: Longest phrase, in bars, that the vocabulary can number.
        tokenizer: Plain settings from which ``midigenre.tokenizers.from_spec`` rebuilds it.
    """

    name: str
    fields: tuple[Field, ...]
    bars: BarKind
    max_bars: int
    tokenizer: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Vocabulary size of each field, length F."""
        return tuple(len(f) for f in self.fields)

    @property
    def pitches(self) -> list[list[int]]:
        """Pitch of each id of each field; -1 for an id without one, drums included."""
        return [
            [
                int(value) if kind in ("Pitch", "NoteOn") else -1
                for kind, value in zip(f.types, f.values, strict=True)
            ]
            for f in self.fields
        ]

    @property
    def times(self) -> list[list[bool]]:
        """Whether each id of each field says when a note begins, or lets time pass."""
        return [f.is_type("Bar", "Position", "TimeShift").tolist() for f in self.fields]

    @property
    def n_tokens(self) -> int:
        """Sum of the vocabulary sizes over the fields."""
        return sum(self.sizes)

    def special(self, name: Literal["PAD", "BOS", "EOS", "MASK"]) -> tuple[int, ...] | None:
        """Ids of a special token, one for each field, or None where the vocabulary has none."""
        ids = [f.index.get(f"{name}_None") for f in self.fields]
        return None if any(i is None for i in ids) else tuple(i for i in ids if i is not None)

    def words(self, ids_TF: NDArray[np.integer[Any]]) -> list[str]:
        """Each step as text, its fields joined by spaces."""
        return [
            " ".join(f.tokens[i] for f, i in zip(self.fields, step, strict=True)) for step in ids_TF
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, Arrow metadata and checkpoints."""
        return {
            "name": self.name,
            "fields": [{"name": f.name, "tokens": list(f.tokens)} for f in self.fields],
            "bars": self.bars,
            "max_bars": self.max_bars,
            "tokenizer": json.loads(json.dumps(self.tokenizer)),  # tuples as lists
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TokenSpec:
        """Inverse of :meth:`to_dict`."""
        fields = tuple(Field(f["name"], tuple(f["tokens"])) for f in data["fields"])
        return cls(data["name"], fields, data["bars"], data["max_bars"], dict(data["tokenizer"]))

    # What a file may name is asked in each process. Pickles come from our own processes alone: what
    # one of them lets a file name, the user gave.
    def __getstate__(self) -> tuple[dict[str, Any], bool]:
        named = self.tokenizer.get(registry.TARGET)
        return self.__dict__.copy(), registry.is_known("tokenizer", named)

    def __setstate__(self, state: tuple[dict[str, Any], bool]) -> None:
        self.__dict__.update(state[0])
        if state[1]:
            registry.trust_class("tokenizer", self.tokenizer[registry.TARGET])

    def fingerprint(self) -> str:
        """Hash of the vocabulary and the settings; equal specs read each other's shards."""
        text = json.dumps(self.to_dict() | {"name": ""}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class LabelSpec:
    """Names of the classes of each label, in the order of the model's outputs.

    Attributes:
        classes: For instance ``{"genre": ("jazz", "rock"), "emotion": ("happy", "sad")}``.
    """

    classes: Mapping[str, tuple[str, ...]]

    def encode(self, labels: Mapping[str, str | None]) -> dict[str, int]:
        """Class index of each label of a song, :data:`UNKNOWN` where it has none.

        Raises:
            ValueError: A class name that the label does not have.
        """
        return {
            label: UNKNOWN if (name := labels.get(label)) is None else names.index(name)
            for label, names in self.classes.items()
        }

    def to_dict(self) -> dict[str, list[str]]:
        """Plain data for JSON, Arrow metadata and checkpoints."""
        return {label: list(names) for label, names in self.classes.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Sequence[str]]) -> LabelSpec:
        """Inverse of :meth:`to_dict`."""
        return cls({label: tuple(names) for label, names in data.items()})


@dataclass(frozen=True)
class Batch:
    """Phrases laid end to end.

    Attributes:
        ids_NF: Token ids of all phrases, int64, shape (N, F).
        cu_seqlens: Start of each phrase in ``ids_NF`` and the total N, int32, shape (B + 1,), on
            the device of ``ids_NF``.
        lengths: The phrase lengths as Python numbers (length B), so that a loop over the phrases
            never waits for the device.
        labels: Class index of each phrase for each label, int64 (B,), or :data:`UNKNOWN`.
        song_B: Index of each phrase's song in the data set, int64 (B,).
        start_B: First bar of each phrase in its song, int64 (B,).
        step_counts: For each label the number of phrases of each class, float32 (C,), over *all*
            batches that add to the same optimizer step. A loss divided by these, and not by its own
            batch's, makes gradient accumulation equal to one large batch.
        step_batches: What the trainer divides every batch's loss by (its accumulated batches, also
            in a last step that has fewer); the loss is multiplied by it beforehand.
        step_size: How many batches this process has in the step; fewer than ``step_batches`` in an
            epoch's last one.
    """

    ids_NF: Tensor
    cu_seqlens: Tensor
    lengths: tuple[int, ...]
    labels: Mapping[str, Tensor]
    song_B: Tensor
    start_B: Tensor
    step_counts: Mapping[str, Tensor] = field(default_factory=dict)
    step_batches: int = 1
    step_size: int = 1

    @classmethod
    def from_phrases(
        cls, ids: Sequence[NDArray[np.int64]], labels: Mapping[str, NDArray[np.integer[Any]]],
        song_B: NDArray[np.integer[Any]], start_B: NDArray[np.integer[Any]],
    ) -> Batch:  # fmt: skip
        """Lays phrases end to end.

        Args:
            ids: Token ids of each phrase, int64 of shape (T, F).
            labels: Class index of each phrase for each label, shape (B,).
            song_B: Index of each phrase's song, shape (B,).
            start_B: First bar of each phrase, shape (B,).
        """
        import torch

        lengths = tuple(len(phrase) for phrase in ids)
        return cls(
            ids_NF=torch.from_numpy(np.concatenate(ids)),
            cu_seqlens=torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int32),
            lengths=lengths,
            labels={k: torch.from_numpy(np.asarray(v, np.int64)) for k, v in labels.items()},
            song_B=torch.from_numpy(np.asarray(song_B, np.int64)),
            start_B=torch.from_numpy(np.asarray(start_B, np.int64)),
        )

    @property
    def mean_scale(self) -> float:
        """What makes this batch's mean its share of the mean over the step's batches."""
        return self.step_batches / self.step_size

    @property
    def n_phrases(self) -> int:
        """Number of phrases, B."""
        return len(self.lengths)

    @property
    def n_tokens(self) -> int:
        """Number of packed steps, N."""
        return self.ids_NF.shape[0]

    def _map(self, move: Any) -> Batch:
        names = ("ids_NF", "cu_seqlens", "song_B", "start_B")
        return replace(
            self,
            **{name: move(getattr(self, name)) for name in names},
            labels={k: move(v) for k, v in self.labels.items()},
            step_counts={k: move(v) for k, v in self.step_counts.items()},
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (called by the DataLoader when ``pin_memory`` is on)."""
        return self._map(lambda tensor: tensor.pin_memory())
