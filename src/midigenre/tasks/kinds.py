"""The kinds of model that tasks train, and how each is built from its settings.

They stand apart from the LightningModules so that a trained model opens without Lightning, whose
import alone takes longer than opening it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from midigenre.data.phrases import Seconds, phrase_length
from midigenre.errors import UserError
from midigenre.generation.grammar import Grammar
from midigenre.generation.sampling import Context
from midigenre.models import (
    ConditionEmbedding,
    FieldEmbedding,
    FieldHead,
    LabelHead,
    MaskedHead,
    MaskedLoss,
    MaskedModel,
    Masking,
    PhraseClassifier,
    PhraseGenerator,
    Pooling,
)
from midigenre.models.masking import check_share
from midigenre.models.transformer import check_choice
from midigenre.spec import LabelSpec, TokenSpec
from midigenre.tasks.predict import song_kind
from midigenre.tokenizers.base import from_spec

CHECKPOINT_KEY = "midigenre"
"""Where a checkpoint holds what is needed to rebuild the model, as plain data."""


@dataclass(frozen=True)
class ModelParts:
    """The components of a task's model.

    Attributes:
        embedding: Token ids to vectors.
        backbone: Of the width of the embedding.
        pooling: The name of a pooling.
        tokens: Vocabulary, from the shards or a checkpoint.
        labels: Class names, likewise.
        counts: Training phrases of each class for each label; None where the class weights
            come from a checkpoint.
    """

    embedding: FieldEmbedding
    backbone: nn.Module
    pooling: str
    tokens: TokenSpec
    labels: LabelSpec
    counts: Mapping[str, Any] | None = None


class ModelKind(ABC):
    """A kind of trained model.

    Attributes:
        name: In words; commands check it.
        trained_by: The task, as ``conf/task`` names it.
        causal: Whether the model sees only what lies before.
    """

    name: ClassVar[str]
    trained_by: ClassVar[str]
    causal: ClassVar[bool] = False

    @staticmethod
    @abstractmethod
    def labels_of(task: Mapping[str, Any]) -> tuple[str, ...]:
        """The labels that the settings of a task, ``conf/task``, ask of the songs."""

    @classmethod
    @abstractmethod
    def make_model(cls, task: Mapping[str, Any], parts: ModelParts) -> nn.Module:
        """The model; ``task`` is ``cfg.task`` as plain data.

        Raises:
            ValueError: A setting is out of range.
        """


class ClassifierKind(ModelKind):
    """A :class:`~midigenre.models.PhraseClassifier`."""

    name = "classifier"
    trained_by = "midigenre.tasks.classify.ClassifyTask"

    @staticmethod
    def labels_of(task: Mapping[str, Any]) -> tuple[str, ...]:
        """See :meth:`ModelKind.labels_of`."""
        labels = task["labels"]
        found = (labels,) if isinstance(labels, str) else tuple(dict.fromkeys(labels or ()))
        if not found or not all(found):
            raise UserError(
                f"task.labels={labels}: name the labels to learn, as task.labels=[composer]"
            )
        return found

    @classmethod
    def make_model(cls, task: Mapping[str, Any], parts: ModelParts) -> PhraseClassifier:
        """See :meth:`ModelKind.make_model`."""
        song_kind(task)  # rejected before hours of training, not after
        check_choice("task.head", task["head"], ("mlp", "linear"))
        width, heads = parts.embedding.d_model, []
        for label in cls.labels_of(task):
            weights = None
            if parts.counts is not None:
                counts_C = torch.as_tensor(parts.counts[label])
                weights = class_weights(counts_C, task["class_weight_power"])
            heads.append(
                LabelHead(
                    label, parts.labels.classes[label], width, weights, task["label_smoothing"],
                    task["head_dropout"], task["head"] == "linear",
                )
            )  # fmt: skip
        pooling, masked = Pooling(parts.pooling, width), None
        if task["mlm_weight"] != 0:
            masking = Masking(parts.tokens, **task["mlm"])
            head = MaskedHead(parts.tokens.sizes, width, masking.fields)
            masked = MaskedLoss(masking, head, task["mlm_weight"])
        return PhraseClassifier(parts.embedding, parts.backbone, pooling, heads, masked)


class MaskedKind(ModelKind):
    """A :class:`~midigenre.models.MaskedModel`."""

    name = "masked model"
    trained_by = "midigenre.tasks.pretrain.PretrainTask"

    @staticmethod
    def labels_of(task: Mapping[str, Any]) -> tuple[str, ...]:
        """See :meth:`ModelKind.labels_of`: none."""
        return ()

    @classmethod
    def make_model(cls, task: Mapping[str, Any], parts: ModelParts) -> MaskedModel:
        """See :meth:`ModelKind.make_model`."""
        check_share("eval_share", task["eval_share"])
        masking = Masking(
            parts.tokens, task["strategy"], task["share"], task["replace"], task["structure"]
        )
        head = MaskedHead(parts.tokens.sizes, parts.embedding.d_model, masking.fields)
        return MaskedModel(parts.embedding, parts.backbone, masking, head)


class GeneratorKind(ModelKind):
    """A :class:`~midigenre.models.PhraseGenerator`."""

    name = "generator"
    trained_by = "midigenre.tasks.generate.GenerateTask"
    causal = True

    @staticmethod
    def labels_of(task: Mapping[str, Any]) -> tuple[str, ...]:
        """See :meth:`ModelKind.labels_of`."""
        return tuple(task["conditions"])

    @classmethod
    def make_model(cls, task: Mapping[str, Any], parts: ModelParts) -> PhraseGenerator:
        """See :meth:`ModelKind.make_model`."""
        width = parts.embedding.d_model
        classes = {label: len(parts.labels.classes[label]) for label in task["conditions"]}
        conditions = (
            ConditionEmbedding(classes, width, task["condition_dropout"]) if classes else None
        )
        # Fields are predicted in the order of the grammar.
        head = FieldHead(parts.tokens.sizes, width, Grammar(from_spec(parts.tokens)).order)
        return PhraseGenerator(
            parts.embedding, parts.backbone, conditions, head, task["condition_by"]
        )


KINDS = {kind.trained_by: kind for kind in (ClassifierKind, MaskedKind, GeneratorKind)}
"""Those of this package by the name of their task; a task of one's own has :attr:`Task.kind`."""


def class_weights(counts_C: Tensor, power: float = 1.0) -> Tensor:
    """Weights, float32 (C,), that make up for rare classes; 0 for a class without phrases.

    ``(n / (k * count)) ** power`` for k classes with at least one training phrase among n. Power 0
    is no weighting, 1 scikit-learn's ``class_weight="balanced"`` (after King and Zeng 2001).

    Raises:
        ValueError: ``power`` is negative, or no class has a phrase.
    """
    if power < 0:
        raise ValueError(
            f"power={power} would favour common classes; give 0 (none) to 1 (balanced)"
        )
    counts_C = counts_C.double()
    seen_C = counts_C > 0
    if not bool(seen_C.any()):
        raise ValueError("class weights need at least one labelled phrase; all counts are 0")
    balanced_C = counts_C.sum() / (seen_C.sum() * counts_C.clamp_min(1))
    return torch.where(seen_C, balanced_C**power, 0.0).float()


def context_for(data: Mapping[str, Any], tokens: TokenSpec) -> Context:
    """The windows that a generator is trained on.

    Args:
        data: ``cfg.data``, or what a checkpoint holds of it.
        tokens: Its vocabulary.
    """
    length = phrase_length(data, tokens)
    bars = length.max_bars if isinstance(length, Seconds) else length
    return Context(data["max_tokens"], bars)
