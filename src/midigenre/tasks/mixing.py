"""What a classifier may minimise beside the loss of its labels; everything is off by default.

B phrases   D model width   C classes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from midigenre.models import PhraseClassifier
from midigenre.spec import UNKNOWN, Batch


@dataclass(frozen=True)
class Extras:
    """Options of ``conf/task`` that change the loss in training, and only there.

    Attributes:
        mixup: alpha of manifold mixup (Verma et al. 2019, arXiv 1806.05236), here of the vectors
            that the heads see; 0 for none.
        r_drop: Weight of R-Drop (Liang et al. 2021, arXiv 2106.14448), alpha there: each batch
            goes through the model twice, and the two answers, which differ by dropout alone, are
            drawn together; 0 for none. It doubles the cost of a step.

    Raises:
        ValueError: One is negative.
    """

    mixup: float = 0.0
    r_drop: float = 0.0

    def __post_init__(self) -> None:
        for name in ("mixup", "r_drop"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"task.{name} must be 0 (off) or more, got {getattr(self, name)}")

    @classmethod
    def of(cls, task: Mapping[str, Any]) -> Extras:
        """From the settings of a task; those of older runs lack them."""
        return cls(**{k: task[k] for k in ("mixup", "r_drop") if k in task})


@dataclass(frozen=True)
class Losses:
    """Losses of a batch.

    Attributes:
        total: What to minimise.
        own: That of the labels over this batch alone, not as a share of its optimizer step.
        by_label: The same for each label.
        extras: Further losses by their name in the log, without their weights.
    """

    total: Tensor
    own: Tensor
    by_label: dict[str, Tensor]
    extras: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Mixed:
    """Logits of phrases, each mixed with another one.

    Attributes:
        logits: For each label, shape (B, C).
        share: Share of the phrase itself, the rest is its partner's.
        partner: For each label the partner of each phrase, int64 (B,); empty where nothing is
            mixed.
    """

    logits: Mapping[str, Tensor]
    share: float = 1.0
    partner: Mapping[str, Tensor] = field(default_factory=dict)

    def loss(self, model: PhraseClassifier, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """As :meth:`midigenre.models.PhraseClassifier.loss`, of both phrases by their shares."""
        total, losses = model.loss(self.logits, batch)
        if not self.partner:
            return total, losses
        labels = {label: batch.labels[label][other] for label, other in self.partner.items()}
        partners = replace(batch, labels={**batch.labels, **labels})
        other_total, others = model.loss(self.logits, partners)
        keep, give = self.share, 1 - self.share
        return keep * total + give * other_total, {
            label: keep * loss + give * others[label] for label, loss in losses.items()
        }


def mix(model: PhraseClassifier, h_BD: Tensor, batch: Batch, alpha: float) -> Mixed:
    """Mixes the vectors of phrases: one share for the batch, a partner for each phrase.

    The partners of a label are those whose label is known, dealt out anew. A phrase whose label is
    unknown is left alone and adds nothing, and no labelled phrase is mixed with music that its
    target knows nothing of. As every known label is dealt once, the weights that a loss is divided
    by are those of the batch unmixed, also over accumulated batches.

    Args:
        model: The classifier.
        h_BD: From its ``encode``, shape (B, D).
        batch: The same batch with its labels.
        alpha: Both parameters of the Beta distribution of the share; 0 mixes nothing.
    """
    if alpha == 0:
        return Mixed(model.logits(h_BD))
    # Both draws on CPU, so that the device does not decide on them.
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    logits, partner = {}, {}
    for label, head in model.label_heads().items():
        known = (batch.labels[label] != UNKNOWN).nonzero().squeeze(1)
        other_B = torch.arange(batch.n_phrases, device=h_BD.device)
        other_B[known] = known[torch.randperm(len(known)).to(h_BD.device)]
        partner[label] = other_B
        logits[label] = head(share * h_BD + (1 - share) * h_BD[other_B])
    return Mixed(logits, share, partner)


def disagreement(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each label the mean over the phrases of (KL(p, q) + KL(q, p)) / 2.

    Args:
        one: ``{label: logits_BC}``, p.
        other: The same for q.
    """
    found = {}
    for label, logits_BC in one.items():
        p_BC, q_BC = logits_BC.float().log_softmax(-1), other[label].float().log_softmax(-1)
        # (p - q) (log p - log q) is the sum of both divergences.
        found[label] = ((p_BC.exp() - q_BC.exp()) * (p_BC - q_BC)).sum(-1).mean() / 2
    return found


def losses(model: PhraseClassifier, batch: Batch, extras: Extras) -> Losses:
    """Losses of a batch in training.

    With nothing on, this is the loss of the labels. R-Drop is that of its paper halved, so that the
    part of the labels weighs what it does without: the mean of both passes and ``r_drop / 2`` times
    :func:`disagreement`, which asks for no label and so counts all phrases.

    Args:
        model: The classifier; with its ``masked`` it sees the batch with hidden tokens.
        batch: Packed phrases.
        extras: What to add.
    """
    seen, hidden_NF, steps_ND = batch, None, None
    if model.masked is not None:
        seen, hidden_NF = model.masked.hide(batch)
        h_BD, steps_ND = model.encode_steps(seen)
    else:
        h_BD = model.encode(seen)
    passes = [mix(model, h_BD, batch, extras.mixup)]
    unmixed = passes[0].logits if extras.mixup == 0 else None
    found: dict[str, Tensor] = {}
    added = h_BD.new_zeros((), dtype=torch.float32)
    if extras.r_drop:
        again_BD = model.encode(seen)
        passes.append(mix(model, again_BD, batch, extras.mixup))
        if unmixed is None:
            one, other = model.logits(h_BD), model.logits(again_BD)
        else:
            one, other = dict(unmixed), dict(passes[1].logits)
        apart = disagreement(one, other)
        weights = {label: head.loss_weight for label, head in model.label_heads().items()}
        found["r_drop"] = sum((weights[k] * v for k, v in apart.items()), added)
        added = added + extras.r_drop / 2 * found["r_drop"]
    if model.masked is not None and steps_ND is not None and hidden_NF is not None:
        found["mlm_loss"] = model.masked(steps_ND, batch.ids_NF, hidden_NF)
        added = added + model.masked.weight * found["mlm_loss"]
    total = sum((each.loss(model, batch)[0] for each in passes), 0 * added) / len(passes)
    with torch.no_grad():
        # Undo the scaling by the step's other batches: what is logged is this batch's own mean.
        own, by_label = passes[0].loss(model, replace(batch, step_counts={}, step_batches=1))
    # The labels' losses know the whole step; these are means over this batch.
    added = added * batch.mean_scale
    return Losses(total + added if found else total, own, by_label, found)
