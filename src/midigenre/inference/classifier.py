"""Answers of a trained classifier for MIDI files: labels, probabilities and vectors."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from midigenre.arrays import Floats, Longs
from midigenre.data.phrases import MemorySongs
from midigenre.data.sandbox import FileReader
from midigenre.errors import RejectedSongError, UserError
from midigenre.evaluation.calibration import Calibration, song_energy
from midigenre.midi.song import Song
from midigenre.tasks.explain import METHOD, Attribution, Explainer
from midigenre.tasks.predict import SongPredictions, load_song_models, predict_songs, song_scores
from midigenre.tokenizers.base import Encoded
from midigenre.trained import Run, device_of
from midigenre.wording import plural, program_name

FILES_AT_ONCE = 64  # bounds the memory; phrases of these files share batches

Named: TypeAlias = str | os.PathLike[str]
"""A file's path."""


@dataclass(frozen=True)
class Embedding:
    """Vectors of a song: what a classifier's heads see.

    Attributes:
        phrases: One of each phrase, float32 of shape (P, D).
        bars: First bar of each phrase, counted from 0, and the one after its last, int64 of shape
            (P, 2).
    """

    phrases: NDArray[np.float32]
    bars: Longs

    @property
    def song(self) -> NDArray[np.float32]:
        """Mean over the phrases, float32 of shape (D,)."""
        mean_D: NDArray[np.float32] = self.phrases.mean(0, dtype=np.float64).astype(np.float32)
        return mean_D


@dataclass(frozen=True)
class Answer:
    """What a classifier says about a file.

    Attributes:
        path: The file.
        content: What ``midigenre predict`` prints as JSON, without the path.
        song: Its music.
        embedding: Its vectors.
        attributions: For each label what decided it; empty unless requested.
    """

    path: Path
    content: dict[str, Any]
    song: Song
    embedding: Embedding
    attributions: Mapping[str, Attribution] = field(default_factory=dict)

    @property
    def with_path(self) -> dict[str, Any]:
        """The JSON object of the file."""
        return {"path": str(self.path)} | self.content


@dataclass(frozen=True)
class Rejected:
    """A file that cannot be read.

    Attributes:
        path: The file.
        error: Why.
    """

    path: Path
    error: RejectedSongError

    @property
    def with_path(self) -> dict[str, Any]:
        """The JSON object of the file."""
        return {
            "path": str(self.path), "error": self.error.reason, "detail": self.error.detail,
        }  # fmt: skip


def none_readable(rejected: Sequence[Rejected]) -> UserError:
    """What is raised where none of the files that a user names can be read."""
    first = rejected[0]
    more = f" (and {plural(len(rejected) - 1, 'more file')})" if len(rejected) > 1 else ""
    is_file = first.error.reason not in ("missing", "not_regular")
    hint = "; a MIDI file starts with MThd" if is_file else ""
    return UserError(f"{first.path}: {first.error}{more}{hint}")


class Classifier:
    """A trained classifier; :func:`midigenre.load` opens one.

    Args:
        trained: The run.
        reader: Reads the files.
        device: ``cpu`` or ``cuda``.
        batch_phrases: Most phrases in a batch.
        batch_tokens: Most steps in a batch, but for a longer phrase, which makes one alone.
        calibrate: Whether probabilities are those of the run's calibration, if it has one.
        threshold: Song probability below which a label is not named; None to name it always.
        coverage: Share of songs like the validation songs whose label is named, instead.
        explain: Whether to say what decided (:mod:`midigenre.tasks.explain`).

    Attributes:
        trained: The run.
        classes: Class names of each label.
        thresholds: For each label the song probability below which it is not named.
        warning: Where songs are scored in another way than the run was trained with, the reason.

    Raises:
        UserError: A setting is out of range, or the run's calibration or song model is damaged.
    """

    def __init__(
        self, trained: Run, reader: FileReader, *, device: str = "cpu", batch_phrases: int = 64,
        batch_tokens: int = 32768, calibrate: bool = True, threshold: float | None = None,
        coverage: float | None = None, explain: bool = False,
    ) -> None:  # fmt: skip
        self.trained, self._reader, self._device = trained, reader, device_of(device)
        self._model = model = trained.classifier
        self._bounds: dict[str, Any] = {
            "batch_phrases": batch_phrases, "batch_tokens": batch_tokens,
        }  # fmt: skip
        self.classes = {label: head.classes for label, head in model.label_heads().items()}
        self._blends, self.warning = load_song_models(trained.checkpoint, model, trained.task)
        self._calibration = (
            Calibration.of_run(trained.folder, trained.checkpoint, self._blends is not None)
            if calibrate
            else None
        )
        self.thresholds = thresholds_of(self._calibration, list(self.classes), threshold, coverage)
        self._explainer = None
        if explain:
            self._explainer = Explainer(
                model, trained.tokens, trained.data, device=self._device, **self._bounds
            )

    @overload  # a text is iterable too
    def predict(self, files: Named) -> dict[str, Any]: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, files: Iterable[Named]) -> list[dict[str, Any]]: ...

    def predict(self, files: Named | Iterable[Named]) -> dict[str, Any] | list[dict[str, Any]]:
        """Labels of a MIDI file, or of several, whose phrases then share batches.

        Args:
            files: A path, or several.

        Returns:
            What ``midigenre predict`` prints as JSON (``docs/prediction.md``): for each label its
            class, ``probabilities``, ``phrases`` and more. For several paths a list, in order; one
            that cannot be read has ``error`` and ``detail`` instead.

        Raises:
            UserError: The only file cannot be read.

        Example:
            >>> answer = model.predict("song.mid")
            >>> answer["genre"] in answer["probabilities"]["genre"]
            True
            >>> [phrase["bars"] for phrase in answer["phrases"]]
            [[0, 4], [4, 8]]
            >>> [a.get("error") for a in model.predict(["song.mid", "nowhere.mid"])]
            [None, 'missing']
        """
        if isinstance(files, (str, os.PathLike)):
            return self._answer(files).with_path
        return [answer.with_path for answer in self.answers([Path(path) for path in files])]

    def embed(self, file: Named) -> Embedding:
        """Vectors of a MIDI file.

        Args:
            file: Its path.

        Returns:
            A vector of each phrase, which the bars of the phrase come with, and one of the song.

        Raises:
            UserError: It cannot be read.

        Example:
            >>> vectors = model.embed("song.mid")
            >>> vectors.phrases.shape, vectors.song.shape
            ((2, 32), (32,))
            >>> vectors.bars.tolist()
            [[0, 4], [4, 8]]
        """
        return self._answer(file).embedding

    def _answer(self, file: Named) -> Answer:
        (answer,) = self.answers([Path(file)])
        if isinstance(answer, Rejected):
            raise none_readable([answer])
        return answer

    def answers(self, files: Sequence[Path]) -> Iterator[Answer | Rejected]:
        """What it says about each file, in order."""
        for begin in range(0, len(files), FILES_AT_ONCE):
            some = files[begin : begin + FILES_AT_ONCE]
            read: dict[Path, tuple[Song, Encoded]] = {}
            found: dict[Path, Answer | Rejected] = {}
            for path in dict.fromkeys(some):
                try:
                    read[path] = self._reader.read(path, self.trained.tokens)
                except RejectedSongError as error:
                    found[path] = Rejected(path, error)
            if read:
                found |= self._answers(read)
            yield from (found[path] for path in some)

    def _answers(self, read: Mapping[Path, tuple[Song, Encoded]]) -> dict[Path, Answer]:
        songs, trained = MemorySongs(list(read.values())), self.trained
        predicted = predict_songs(
            self._model, songs, trained.tokens, trained.data, self._device, by_length=True,
            vectors=True, **self._bounds,
        )  # fmt: skip
        found, phrases = predicted.found, predicted.phrases
        scores = song_scores(self._blends, found, predicted.reader, phrases)
        explained: Sequence[Mapping[str, Attribution]] = [{}] * len(read)
        if self._explainer is not None:
            targets = {label: of.argmax(1) for label, of in scores.items()}
            explained = self._explainer(songs, phrases, targets)
        assert found.vectors is not None
        answers = {}
        for i, (path, (song, _)) in enumerate(read.items()):
            content = self._describe(song, i, predicted, {k: of[i] for k, of in scores.items()})
            if self._explainer is not None:
                content["explanation"] = self._explanation(explained[i])
            mine = found.song == i
            bars_P2 = np.stack([phrases.first[mine], phrases.end[mine]], 1)
            embedding = Embedding(found.vectors[mine], bars_P2)
            answers[path] = Answer(path, content, song, embedding, explained[i])
        return answers

    def _describe(
        self, song: Song, index: int, predicted: SongPredictions, scores: Mapping[str, Floats]
    ) -> dict[str, Any]:
        """One file's answer without its path: labels, probabilities, and those of each phrase.

        Args:
            song: The song.
            index: Its number among those of ``predicted``.
            predicted: The model's output for all phrases.
            scores: For each label the song's log-probabilities before any temperature, (C,).
        """
        found, first, end = predicted.found, predicted.phrases.first, predicted.phrases.end
        mine = np.flatnonzero(found.song == index)
        answers: dict[str, Any] = {}
        probabilities: dict[str, dict[str, float]] = {}
        doubts: dict[str, dict[str, Any]] = {}
        timeline: list[dict[str, Any]] = [
            {
                "bars": [int(first[i]), int(end[i])],
                "seconds": [round(float(song.file_seconds[bar]), 2) for bar in (first[i], end[i])],
            }
            for i in mine
        ]
        levels = {} if self._calibration is None else self._calibration.levels
        for label, names in self.classes.items():
            raw_1C, phrase_NC = scores[label][None], found.log_probs[label][mine]
            energy_1 = song_energy(found.energy[label][mine], found.song[mine])
            # How familiar the song is to the model, before the temperature; None without a limit.
            doubts[label] = {
                "energy": round(float(energy_1[0]), 4),
                "max_softmax": round(float(np.exp(raw_1C.max())), 4),
                "out_of_domain": None,
                "low_confidence": None,
            }
            log_probs_C = raw_1C[0]
            if label in levels:
                level = levels[label]["song"]
                log_probs_C = level.apply(raw_1C)[0]
                phrase_NC = levels[label]["phrase"].apply(phrase_NC)
                if level.max_energy is not None:
                    doubts[label]["out_of_domain"] = bool(level.out_of_domain(energy_1)[0])
                if level.min_confidence is not None:
                    doubts[label]["low_confidence"] = bool(level.low_confidence(raw_1C)[0])
            if label in self.thresholds:
                doubts[label]["threshold"] = round(self.thresholds[label], 4)
            best = int(log_probs_C.argmax())
            unsure = math.exp(log_probs_C[best]) < self.thresholds.get(label, 0.0)
            answers[label] = None if unsure else names[best]
            probabilities[label] = _named(log_probs_C, names)
            for row, of_phrase_C in zip(timeline, phrase_NC, strict=True):
                row[label] = names[int(of_phrase_C.argmax())]
                row.setdefault("probabilities", {})[label] = _named(of_phrase_C, names)
        flags = [about["out_of_domain"] for about in doubts.values()]
        return {
            **answers,
            **({"abstained": None in answers.values()} if self.thresholds else {}),
            "probabilities": probabilities,
            "calibrated": all(label in levels for label in self.classes),
            "out_of_domain": None if None in flags else any(flags),
            "doubts": doubts,
            "repairs": song.repairs,
            "phrases_cut": int(predicted.cut[mine].sum()),
            "phrases": timeline,
        }

    def _explanation(self, attributions: Mapping[str, Attribution]) -> dict[str, Any]:
        """Attributions for JSON: nats of the song's log-odds, null where undefined."""
        return {
            label: {
                "class": self.classes[label][found.target],
                "method": METHOD,
                "log_odds": _number(found.log_odds),
                "bars": [_number(value) for value in found.bars],
                "programs": {program_name(p): _number(v) for p, v in found.programs.items()},
            }
            for label, found in attributions.items()
        }


def thresholds_of(
    calibration: Calibration | None, labels: Sequence[str], threshold: float | None,
    coverage: float | None,
) -> dict[str, float]:  # fmt: skip
    """For each label the song probability below which there is no answer; empty to answer always.

    Args:
        calibration: The run's, None without one.
        labels: The model's labels.
        threshold: One for all labels; None for none.
        coverage: Share of songs to answer, which says the thresholds instead.

    Raises:
        UserError: Both are given, one is out of range, or ``coverage`` without a calibration.
    """
    if threshold is not None and coverage is not None:
        raise UserError(
            f"threshold={threshold} and coverage={coverage}: give one of them; a coverage "
            "finds its threshold on the run's validation songs"
        )
    if threshold is not None:
        if not 0 < threshold <= 1:
            raise UserError(f"threshold={threshold} must lie above 0 and be at most 1")
        return dict.fromkeys(labels, float(threshold))
    if coverage is None:
        return {}
    levels = {} if calibration is None else calibration.levels
    if missing := [label for label in labels if label not in levels]:
        raise UserError(
            f"coverage={coverage}: there is no calibration of {', '.join(missing)} "
            "(RUN/calibration.json, which `midigenre train` writes for ckpt=best); set "
            "threshold= instead"
        )
    return {label: levels[label]["song"].threshold_for(coverage) for label in labels}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6) + 0.0  # no minus zero


def _named(log_probs_C: Floats, names: Sequence[str]) -> dict[str, float]:
    return {name: round(float(np.exp(p)), 4) for name, p in zip(names, log_probs_C, strict=True)}
