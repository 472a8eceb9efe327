"""The music that a judgement is about: pieces, real excerpts, examples for the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from symusic.core import ScoreTick

from midigenre.commands.judgement_page import Example
from midigenre.commands.sampling import conditions_of, make_sampler
from midigenre.corpora.base import Progress
from midigenre.data.phrases import Phrases, consecutive
from midigenre.data.shards import ShardSet
from midigenre.errors import RefusedSongError, UserError
from midigenre.evaluation.music.independence import Independence
from midigenre.files import read_json, write_bytes, write_json
from midigenre.generation.sampling import Sampler, SamplingSettings
from midigenre.midi.clean import read_score
from midigenre.midi.song import Song
from midigenre.spec import UNKNOWN
from midigenre.tasks.listen import Heard
from midigenre.tasks.samples import context_for
from midigenre.tokenizers.base import Tokenizer, from_spec
from midigenre.trained import Run

Longs = NDArray[np.int64]


def mark_of(run: Run) -> list[Any]:
    """What tells a checkpoint from another, and from itself after more training."""
    return [str(run.checkpoint.resolve()), run.checkpoint.stat().st_mtime_ns]


def real_excerpts(songs: ShardSet, test: Longs, how: Independence, bars: int, most: int) -> Phrases:
    """Excerpts of the held-out songs that the judge has not met, as long as the pieces.

    Raises:
        UserError: There is none.
    """
    rows = np.array([i for i in test if int(i) not in how.known_to_judge], np.int64)
    found = consecutive(songs, rows, bars)
    if len(found) == 0:
        raise UserError(
            f"{songs.folder}: the judge was trained on every test song of the generator; train "
            "both with the same split.seed"
        )
    # The rest of a song is left out: it is shorter than a piece. A short song is one excerpt.
    length = found.end - found.first
    found = found.select((length == bars) | (found.first == 0))
    step = max(1.0, len(found) / most)
    return found.select(np.arange(0, len(found), step).astype(np.int64))


class Pieces:
    """Draws pieces in batches; those that an earlier call has finished are read instead.

    Args:
        generator: The generator.
        settings: How they are drawn.
        folder: The judgement's folder; the MIDI files go into ``pieces/``.
        device: Where to compute.
        batch: Pieces written side by side.
        quantize: ``int8`` for eight-bit weights.
        progress: Told about the pieces that are done.

    Attributes:
        cut_short: How many pieces of each set ended before their last bar, because they had
            reached the most tokens or a bar had become longer than the model's context.
    """

    def __init__(
        self,
        generator: Run,
        settings: SamplingSettings,
        folder: Path,
        device: torch.device,
        batch: int,
        quantize: str | None,
        progress: Progress,
    ) -> None:
        self.tokenizer: Tokenizer = from_spec(generator.tokens)
        self.sampler: Sampler = make_sampler(generator, device, quantize)
        self.settings, self.folder, self.progress = settings, folder / "pieces", progress
        self.batch = batch
        self.cut_short: dict[str, int] = {}
        context = context_for(generator.data, generator.tokens)
        self.about = [str(settings), mark_of(generator), str(context), quantize]

    def draw(self, name: str, told: Mapping[str, Longs], first: int) -> list[Song | None]:
        """The pieces told ``told``; None where not a note was drawn.

        Args:
            name: Folder of their MIDI files.
            told: Class of each piece for each condition.
            first: Number of the first under the seed.

        Raises:
            UserError: The folder holds pieces that were drawn otherwise.
        """
        n = len(next(iter(told.values())))
        # What the pieces follow from: others are never taken for these.
        mark = json.dumps([*self.about, first, {k: v.tolist() for k, v in told.items()}])
        stored, ends = self.folder / name / "settings.json", self.folder / name / "stops.json"
        if stored.is_file() and stored.read_text() != mark:
            raise UserError(
                f"{self.folder / name} holds pieces of other settings; give another out="
            )
        write_bytes(stored, mark.encode())
        stops: dict[str, str] = read_json(ends) if ends.is_file() else {}
        paths = [self.folder / name / f"{i:05d}.mid" for i in range(n)]
        what = f"pieces ({name})"
        for begin in range(0, n, self.batch):
            rows = range(begin, min(begin + self.batch, n))
            if not all(paths[i].is_file() for i in rows):
                labels = {label: values[rows.start : rows.stop] for label, values in told.items()}
                samples = self.sampler.sample(
                    {label: values.tolist() for label, values in labels.items()},
                    self.settings, n=len(rows), first=first + begin,
                )  # fmt: skip
                # Before the pieces: one that is there is never drawn again to learn how it ended.
                stops |= {paths[i].stem: s.stop for i, s in zip(rows, samples, strict=True)}
                write_json(ends, stops)
                for i, sample in zip(rows, samples, strict=True):
                    write_bytes(paths[i], self.tokenizer.decode(sample.ids_TF).dumps_midi())
            self.progress(what, rows.stop, n)
        self.cut_short[name] = sum(stop in ("tokens", "context") for stop in stops.values())
        return [self._read(path) for path in paths]

    def excerpt(self, song: Song) -> Song | None:
        """A real excerpt on the same way as a piece: bars behind its last onset do not count."""
        return self._read_score(song.to_score())

    def _read(self, path: Path) -> Song | None:
        return self._read_score(read_score(path.read_bytes()))

    def _read_score(self, score: ScoreTick) -> Song | None:
        try:
            return self.tokenizer.clean(score)
        except RefusedSongError as error:
            if error.reason != "empty":
                raise
            return None


def examples_of(
    kind: str,
    songs: Sequence[Song | None],
    classes: Mapping[str, Longs],
    heard: Heard,
    generator: Run,
    judge: Run,
    main: str,
    c: int,
    shown: int,
) -> list[Example]:
    """The first pieces of a class that have a note.

    Args:
        kind: ``generated`` or ``real``.
        songs: The pieces, None for silence.
        classes: Class of each piece for each label, as the generator numbers them.
        heard: What the judge heard in them.
        generator: The generator.
        judge: The judge.
        main: Label of the class.
        c: The class.
        shown: How many.
    """
    found: list[Example] = []
    for i in np.flatnonzero(classes[main] == c):
        song = songs[int(i)]
        if song is None or len(found) >= shown:
            continue
        asked = {
            label: generator.labels.classes[label][int(values[i])]
            for label, values in classes.items()
            if values[i] != UNKNOWN and label in conditions_of(generator)
        }
        verdicts = {
            label: (judge.labels.classes[label][int(p.argmax())], float(np.exp(p.max())))
            for label, p in ((label, values[i]) for label, values in heard.log_probs.items())
            if heard.heard_S[i]
        }
        name = "-".join([kind, *asked.values(), str(i)]).replace("/", "_")
        found.append(Example(kind, name, asked, verdicts, song))
    return found
