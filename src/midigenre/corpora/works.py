"""The seven music21 corpora: which works there are, their notes, and sections of them as MIDI.

music21's code is BSD; the encodings that it carries have terms of their own, some non-commercial
(Palestrina, Essen): they are read from the installed package and not to be redistributed.

music21's own MIDI writer is slow, expands repeats (and fails where they are badly formed), and its
``makeMeasures`` fails on Essen songs with two meters. Here repeats stay unexpanded, ties become one
note, grace notes are dropped, and barlines fall on the grid of the meter.
"""

from __future__ import annotations

import gc
import itertools
import re
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from symusic.core import NoteTickList, ScoreTick, TempoTick, TimeSignatureTick, TrackTick

from midigenre.arrays import Floats, components
from midigenre.corpora.sequencer import TICKS_PER_QUARTER
from midigenre.errors import RejectedSongError, UserError
from midigenre.midi.song import Meter

MAX_NOTATION_BYTES = {".mxl": 500_000, ".xml": 4_000_000, ".krn": 200_000, ".abc": 20_000}
"""Size of file (of one song in Essen) above which a work is rejected: music21 parses some 50 kB
of .mxl per second, so that no single work can hold up the rest for more than some 15 s."""

NOTATION_FORMATS = (".mxl", ".xml", ".krn", ".abc")  # in order of preference; .rntxt holds analyses

DANCES = "Reel|Hornpipe|SlipJig|Slipjig|Jig|Strathspey|LancashireClog|Clog|HighlandFling|Fling"

# Madrigals printed as parts of one piece (prima parte, seconda parte ...): Il terzo libro (1592)
# and Il quinto libro (1605).
MONTEVERDI_CYCLES = (
    ("3.8", "3.9", "3.10"),
    ("3.14", "3.15", "3.16"),
    ("3.19", "3.20"),
    ("5.4", "5.5", "5.6", "5.7", "5.8"),
)

VELOCITY = 80  # scores carry few dynamics, and cleaning makes the velocity constant
MAX_SECTION_BARS = 32
"""Longest song cut from a work, in bars: longer works give several songs of a tune's length."""


@dataclass(frozen=True)
class Work:
    """One work of a music21 corpus, or one movement where movements are files.

    Attributes:
        work_id: Unique among all works; starts with the genre.
        genre: Name of the corpus.
        path: File in music21's corpus.
        group: Works of one group belong together: movements, parts of a cycle, variants of a song.
        title: In words, as far as the file name or the file's header gives it.
        number: Index of the song in an Essen file, from 0; None elsewhere.
    """

    work_id: str
    genre: str
    path: Path
    group: str
    title: str
    number: int | None = None

    @property
    def corpus_path(self) -> str:
        """Path below music21's corpus folder, with the song's place where a file holds many."""
        parts = self.path.parts
        depth = parts[::-1].index(self.genre) + 1
        where = "/".join(parts[-depth:])
        return where if self.number is None else f"{where}#{self.number}"


def corpus_root() -> Path:
    """music21's corpus folder, found without importing music21 (half a second).

    Raises:
        UserError: music21 is not installed, or without its corpus.
    """
    found = find_spec("music21")
    root = Path(found.origin or "").parent / "corpus" if found else None
    if root is None or not root.is_dir():
        raise UserError("corpus=twelve needs music21 with its corpus: pip install music21")
    return root


def catalogue(genre: str) -> list[Work]:
    """All works of a corpus, one file per work, in a stable order.

    Raises:
        UserError: music21 or its corpus is missing.
    """
    folder = corpus_root() / genre
    if genre == "essenFolksong":
        return _essen(folder)
    by_work: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix in NOTATION_FORMATS and path.is_file():
            name = path.relative_to(folder).with_suffix("").as_posix()
            # Without the mark of an edition: bwv112.5 and bwv112.5-sc are two editions, but
            # bwv69.6-a belongs to BWV 69a, another cantata.
            edition = r"-(?!a$).*" if genre == "bach" else r"_(old|bak)$"
            by_work[re.sub(edition, "", name)].append(path)
    names = sorted(by_work)
    # The preferred format; among editions of one work the shortest name (no "_old", no "-sc").
    paths = [
        min(by_work[name], key=lambda p: (NOTATION_FORMATS.index(p.suffix), len(p.name), p.name))
        for name in names
    ]
    groups = _components([_keys(genre, n, p) for n, p in zip(names, paths, strict=True)])
    works = []
    for name, path, group in zip(names, paths, groups, strict=True):
        title = name.split("-", 1)[-1] if " " in name else name
        title = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", title)
        title = re.sub(r"[_ ]+", " ", title).strip()
        works.append(Work(f"{genre}-{_slug(name)}", genre, path, f"{genre}-{group}", title))
    return works


def _keys(genre: str, name: str, path: Path) -> list[str]:
    """What links a work to others: works that share any key are of one group."""
    if genre == "bach":
        bwv, _, movement = name.partition(".")
        return [bwv + ("a" if movement.endswith("-a") else "")]
    if genre == "beethoven":
        return [name.split("/")[0]]
    if genre == "palestrina":
        mass = re.search(r"^!!!OPR: *(.+?) *$", path.read_text("utf-8", "replace"), re.MULTILINE)
        return [_slug(mass[1] if mass else name)]
    if genre == "monteverdi":
        number = name.removeprefix("madrigal.")
        cycle = next((c for c in MONTEVERDI_CYCLES if number in c), (number,))
        return [f"madrigal.{cycle[0]}"]
    if genre == "trecento":
        # PMFC volume and number; 3a and 3b are versions of one piece, and a piece may stand in two
        # volumes under one title. One word (Gloria, Credo) is a part of the mass, not a title.
        match = re.match(r"(PMFC_\d+(?:[_-][A-Z][a-z]+)?[_-]\d+)[ab]?[-_ ](.*)", name)
        number, title = match.groups() if match else ("", re.sub(r"^PMFC_\d+-", "", name))
        title = re.sub(r"[_-]+", " ", title).strip()
        return [number or _slug(name), *([f"t:{_slug(title).lower()}"] if " " in title else [])]
    tune = re.sub(r"_[A-G]$|No\d$", "", name)
    return [re.sub(rf"({DANCES})$", "", tune).lower() or name.lower()]


def _essen(folder: Path) -> list[Work]:
    """Each song of each opus file; ``test*.abc`` repeats songs of the others.

    Variants share the number of the signature (E0001, E0001A, E0001B) or the title.
    """
    works: list[tuple[Path, int, str]] = []
    keys: list[list[str]] = []
    for path in sorted(folder.glob("*.abc")):
        if path.name.startswith("test"):
            continue
        for number, song in enumerate(_songs(path)):
            title = re.search(r"(?m)^T: *(.*?) *$", song)
            signature = re.search(r"(?m)^N: *([A-Z]+\d+)[A-Z]?\b", song)
            works.append((path, number, title[1] if title else ""))
            words = re.sub(r"\W*(\(?Band|S\.|Nr\.).*", "", title[1]) if title else ""
            letters = re.sub(r"[^a-z]", "", _slug(words).lower())
            found = [f"t:{letters}"] if letters else []
            keys.append([*found, signature[1] if signature else f"{path.stem}-{number}"])
    groups = _components(keys)
    return [
        Work(f"essenFolksong-{p.stem}-{n:04d}", "essenFolksong", p, f"essenFolksong-{g}", t, n)
        for (p, n, t), g in zip(works, groups, strict=True)
    ]


@cache
def _songs(path: Path) -> tuple[str, ...]:
    """Songs of an ABC file; each starts with its reference number, ``X:``."""
    return tuple(re.split(r"(?m)^(?=X:)", path.read_text("utf-8", "replace"))[1:])


def _components(keys: Sequence[Sequence[str]]) -> list[str]:
    """Name of each row's group, the smallest key in it; rows that share a key share a group."""
    names = sorted({key for row in keys for key in row})
    column = {name: i for i, name in enumerate(names)}
    pairs = np.array([(i, len(keys) + column[key]) for i, row in enumerate(keys) for key in row])
    component = components(len(keys) + len(names), pairs)
    first = {int(c): names[i] for i, c in reversed(list(enumerate(component[len(keys) :])))}
    return [first[int(c)] for c in component[: len(keys)]]


def _slug(text: str) -> str:
    """Letters, digits, dots and dashes only: safe as a file name on every system."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9.]+", "-", ascii_text).strip("-.")


@dataclass(frozen=True)
class Notation:
    """Notes and bars of a work, in quarter notes from the first barline.

    Attributes:
        parts: Name and notes of each part; rows are onset, end, pitch (0 to 127).
        starts: Start of each bar and the end of the last, ascending, length bars + 1.
        meters: Numerator and denominator of each bar; each bar is exactly as long as its meter.
    """

    parts: list[tuple[str, Floats]]
    starts: Floats
    meters: list[Meter]


def read_work(work: Work) -> Notation:
    """Notes and bars of a work.

    Raises:
        RejectedSongError: As :func:`parse` and :func:`notation`; or no meter in a tune in ABC.
        Exception: Whatever music21 raises on a file that it cannot read.
    """
    if work.path.suffix != ".abc":
        return notation(parse(work))
    # music21 gives a short measure of an ABC tune a meter of its own (1/8 for a pickup), so only
    # the meters that the tune itself names count.
    names = re.findall(r"(?:^|\[)M: *([^\]\n]*)", _text(work) or "", re.MULTILINE)
    signs = [{"C": "4/4", "C|": "2/2"}.get(name.strip(), name) for name in names]
    found = [m for sign in signs if (m := re.search(r"(\d+)/(\d+)", sign))]
    if not found:
        raise RejectedSongError("not_written", f"no meter (M: {', '.join(names) or 'missing'})")
    return notation(parse(work), [(int(m[1]), int(m[2])) for m in found])


def _text(work: Work) -> str | None:
    """The tune in ABC, None for other formats."""
    if work.number is not None:
        return _songs(work.path)[work.number]
    return work.path.read_text("utf-8", "replace") if work.path.suffix == ".abc" else None


def parse(work: Work) -> Any:
    """The work as a music21 score, at sounding pitch.

    Raises:
        RejectedSongError: Too long to parse in reasonable time (:data:`MAX_NOTATION_BYTES`).
        Exception: Whatever music21 raises on a file that it cannot read.
    """
    text = _text(work)
    size = work.path.stat().st_size if text is None else len(text)
    if size > MAX_NOTATION_BYTES[work.path.suffix]:
        raise RejectedSongError("not_written", f"{size} bytes in a {work.path.suffix} file")

    from music21 import converter  # half a second, and only the first call converts

    # music21 makes millions of objects and all stay: collecting garbage doubles the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # measures over- or underfull by a grace note, say
            if text is None:
                # A stored pickle would bind the result to whatever wrote it.
                score = converter.parse(work.path, forceSource=True, storePickle=False)
            else:
                score = converter.parse(text, format="abc")
    finally:
        if collecting:
            gc.enable()
    score.toSoundingPitch(inPlace=True)
    return score


def notation(score: Any, declared: Sequence[Meter] = ()) -> Notation:
    """Notes and bars of a music21 score.

    Args:
        score: As :func:`parse` gives it.
        declared: If given, other meters in the score are ignored and the first of these stands at
            the beginning.

    Barlines fall on the grid of the meter: a pickup gets rests before it, measures that share a bar
    (at a repeat sign, say) are one bar, any other short measure gets rests at its end.

    Raises:
        RejectedSongError: No measures, no meter, or no notes.
    """
    parts = list(score.parts) or [score]
    measured = next((p for p in parts if p.hasMeasures()), None)
    if measured is None:
        raise RejectedSongError("not_written", "no measures")
    measures = list(measured.getElementsByClass("Measure"))
    if measures[0].timeSignature is None and not declared:
        raise RejectedSongError("not_written", "no time signature at the beginning")
    old = np.array([float(m.offset) for m in measures] + [float(score.highestTime)])
    meters: list[Meter] = []
    meter = declared[0] if declared else (4, 4)
    for measure in measures:
        sign = measure.timeSignature
        if sign and (not declared or (sign.numerator, sign.denominator) in declared):
            meter = (sign.numerator, sign.denominator)
        meters.append(meter)
    starts, bar_meters, shift = _grid(old, meters)

    found = []
    for i, part in enumerate(parts):
        rows = _notes(part)
        if len(rows):
            onset, end = rows[:, 0], rows[:, 1]
            onset += shift[np.searchsorted(old[1:-1], onset + 1e-6, side="right")]
            end += shift[np.searchsorted(old[1:-1], end - 1e-6, side="right")]
            # A part without a name has its memory address as id: no two runs would agree.
            found.append((str(part.partName or f"part {i + 1}"), rows))
    if not found:
        raise RejectedSongError("empty", "no pitched notes")
    return Notation(found, starts, bar_meters)


def _grid(old: Floats, meters: Sequence[Meter]) -> tuple[Floats, list[Meter], Floats]:
    """Bars of exactly one meter's length, and how far each measure moves, in quarter notes."""
    eps = 1e-3
    starts, kept, shift = [0.0], [], np.zeros(len(meters))
    i = 0
    while i < len(meters):
        bar = 4 * meters[i][0] / meters[i][1]
        if i == 0 and old[1] - old[0] < bar - eps and len(meters) > 1:  # pickup
            shift[0] = bar - (old[1] - old[0])
            n_bars, j = 1, 1
        else:
            j = i + 1
            while (
                j < len(meters)
                and meters[j] == meters[i]
                and old[j] - old[i] < bar - eps
                and old[j + 1] - old[i] < bar + eps
            ):
                j += 1
            shift[i:j] = starts[-1] - old[i]
            n_bars = max(1, int(np.ceil((old[j] - old[i] - eps) / bar)))
        for _ in range(n_bars):
            starts.append(starts[-1] + bar)
            kept.append(meters[i])
        i = j
    return np.array(starts), kept, shift


def _notes(part: Any) -> Floats:
    """Onset, end (quarter notes of the score) and pitch; tied notes are one, grace notes none.

    music21's ``stripTies`` joins a chord only if all its notes are tied, and takes as long as
    parsing; here each pitch is joined separately.
    """
    rows: list[list[float]] = []
    held: dict[int, int] = {}  # pitch -> row whose tie is open
    for element in part.flatten().notes:
        duration = float(element.duration.quarterLength)
        if duration <= 0 or element.duration.isGrace or "Harmony" in element.classes:
            continue
        onset = float(element.offset)
        for note in element.notes if element.isChord else [element]:
            pitch = getattr(note, "pitch", None)  # None for unpitched percussion
            if pitch is None:
                continue
            key = int(pitch.midi)
            tie = None if note.tie is None else note.tie.type
            row = held.get(key)
            # Monteverdi's and some Trecento encodings mark only where a tie starts.
            if row is not None and abs(rows[row][1] - onset) < 1e-3:
                rows[row][1] = onset + duration
                del held[key]
            else:
                row = len(rows)
                rows.append([onset, onset + duration, float(key)])
            if tie in ("start", "continue"):
                held[key] = row
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def sections(work: Notation, max_bars: int = MAX_SECTION_BARS) -> Iterator[tuple[ScoreTick, int]]:
    """The work in sections of nearly equal length, each a score, with their numbers of bars.

    Bars at the beginning of a section in which no note begins are left out, so that no class is
    recognised by its rests; so is a section without any onset. A note belongs to the section of its
    onset and ends with it at the latest.
    """
    notes = np.concatenate([rows for _, rows in work.parts])
    starts = work.starts - 1e-6
    bar = np.unique(np.searchsorted(starts, notes[:, 0], side="right") - 1)  # bars with onsets
    last = min(int(np.searchsorted(starts + 2e-6, notes[:, 1].max())), len(work.meters))
    n_sections = -(-(last - int(bar[0])) // max_bars)
    cuts = np.linspace(bar[0], last, n_sections + 1).round().astype(int)
    for begin, end in itertools.pairwise(cuts.tolist()):
        inside = bar[(bar >= begin) & (bar < end)]
        if len(inside):
            yield _section(work, int(inside[0]), end), end - int(inside[0])


def _section(work: Notation, begin: int, end: int) -> ScoreTick:
    ticks = np.rint((work.starts[begin : end + 1] - work.starts[begin]) * TICKS_PER_QUARTER)
    score = ScoreTick(TICKS_PER_QUARTER)
    score.tempos.append(TempoTick(0, qpm=120.0))
    for i, meter in enumerate(work.meters[begin:end]):
        if i == 0 or meter != work.meters[begin + i - 1]:
            score.time_signatures.append(TimeSignatureTick(int(ticks[i]), *meter))
    for name, rows in work.parts:
        rows = rows.copy()
        rows[:, :2] = np.rint((rows[:, :2] - work.starts[begin]) * TICKS_PER_QUARTER)
        rows = rows[(rows[:, 0] >= 0) & (rows[:, 0] < ticks[-1])]
        if not len(rows):
            continue
        # MIDI cannot hold a pitch twice in a channel: of two voices in unison the longer note
        # stays, and a note ends where the next one of its pitch begins.
        rows = rows[np.lexsort((-rows[:, 1], rows[:, 0], rows[:, 2]))]
        same = (np.diff(rows[:, 2]) == 0) & (np.diff(rows[:, 0]) == 0)
        rows = rows[np.concatenate([[True], ~same])]
        again = np.flatnonzero(np.diff(rows[:, 2]) == 0)
        rows[again, 1] = np.minimum(rows[again, 1], rows[again + 1, 0])
        rows[:, 1] = np.clip(rows[:, 1], rows[:, 0] + 1, ticks[-1])
        rows = rows[np.lexsort((rows[:, 2], rows[:, 0]))]
        track = TrackTick(name=name)
        time, stop, pitch = rows.astype(np.int32).T
        velocity = np.full(len(rows), VELOCITY, dtype=np.int8)
        track.notes = NoteTickList.from_numpy(
            time.copy(), (stop - time).astype(np.int32), pitch.astype(np.int8), velocity
        )
        score.tracks.append(track)
    return score
