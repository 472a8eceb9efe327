"""Which bars and which instruments decided a classifier's answer for a song.

What is explained is the song's *log-odds* of a class c, ``log p(c) - log(1 - p(c))`` in nats, where
p is the mean of the phrases' log-probabilities, renormalised
(:func:`~midigenre.evaluation.scores.song_log_probs`), before any temperature. Two methods:

``occlusion`` (Zeiler and Fergus 2014, arXiv 1311.2901, section 4.2)
    What the log-odds lose when the notes of a bar, or of a program, are taken out of the music and
    each phrase that held them is encoded anew. Notes are left out, not hidden behind MASK: a
    classifier has seen music without an instrument, and never a MASK. It works for every tokenizer.
``gradient`` (gradient times input: Simonyan et al. 2013, arXiv 1312.6034; Shrikumar et al. 2017,
    arXiv 1605.01713)
    Sums ``gradient . embedding`` over the steps of a bar, or over those that say the notes of a
    program: one forward and one backward pass, to first order. A layer norm right behind the
    embedding does not see a change of its length, so that in pre-norm encoders the values are
    small and say less than those of an occlusion.

Both are in nats, not normalised; above 0 spoke for the class, below 0 against it. Occlusions are
measured one by one: they do not add up to the log-odds, since what two bars say both is missing
only when both are. Gradients add up over bars, to the derivative along the embeddings and not to
the log-odds; over programs they sum to less, as bars, positions, meters and tempi belong to none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from midigenre.data.phrases import PhraseReader, Phrases
from midigenre.data.shards import Songs
from midigenre.errors import UserError
from midigenre.models import PhraseClassifier
from midigenre.spec import TokenSpec
from midigenre.tasks.attribution import Attribution, Seen, Targets
from midigenre.tasks.gradient_input import GradientInput
from midigenre.tasks.occlusion import Occlusion
from midigenre.tasks.predict import Predictions

METHODS = ("occlusion", "gradient")


class Explainer:
    """Explains answers of a classifier; call it with songs and what was found of them.

    Args:
        model: The classifier.
        tokens: Its vocabulary.
        data: Its ``max_tokens`` and ``marks``.
        method: ``occlusion`` or ``gradient``.
        batch_phrases: Most phrases in a batch.
        batch_tokens: Most steps in a batch; a phrase that is longer makes a batch alone.
        device: Where to compute.

    Raises:
        UserError: There is no such method, or ``gradient`` with a vocabulary in which the notes
            cannot be found.
    """

    def __init__(
        self,
        model: PhraseClassifier,
        tokens: TokenSpec,
        data: Mapping[str, Any],
        method: str = "occlusion",
        *,
        batch_phrases: int = 64,
        batch_tokens: int = 32768,
        device: torch.device | str = "cpu",
    ) -> None:
        check_method(method)
        self._tokens, self._data = tokens, data
        has_programs = any(f.is_type("Program").any() for f in tokens.fields)
        bounds = (batch_phrases, batch_tokens, torch.device(device))
        self._gradient: GradientInput | None = None
        self._occlusion = Occlusion(model, has_programs, *bounds)
        if method == "gradient":
            try:
                self._gradient = GradientInput(model, tokens, has_programs, *bounds)
            except ValueError as error:
                raise UserError(
                    f"explain_method=gradient: {error}; set explain_method=occlusion"
                ) from error

    def __call__(
        self, songs: Songs, phrases: Phrases, found: Predictions, targets: Targets
    ) -> list[dict[str, Attribution]]:
        """For each song the attribution of each label.

        Args:
            songs: The songs, S.
            phrases: All their phrases.
            found: What the model says of each, in the same order.
            targets: For each label the class to explain of each song, shape (S,).
        """
        marks = self._data.get("marks", False)
        reader = PhraseReader(songs, self._tokens, self._data["max_tokens"], marks)
        seen = Seen.of(songs, phrases, reader)
        if self._gradient is not None:
            return self._gradient(songs, seen, found, targets)
        return self._occlusion(songs, seen, reader, targets)


def check_method(method: str) -> None:
    """Refuses a method that there is not.

    Raises:
        UserError: It is none of :data:`METHODS`.
    """
    if method not in METHODS:
        raise UserError(f"explain_method={method}; choose {' or '.join(METHODS)}")
