"""The seven music21 corpora: which works there are, and their notes.

music21's code is BSD; the encodings that it carries have terms of their own, some non-commercial
(Palestrina, Essen): they are read from the installed package and not to be redistributed.
"""

from __future__ import annotations

import gc
import re
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from midigenre.arrays import components
from midigenre.corpora.notation import Notation, notation
from midigenre.errors import RefusedSongError, UserError

MAX_BYTES = {".mxl": 500_000, ".xml": 4_000_000, ".krn": 200_000, ".abc": 20_000}
"""Size of file (of one song in Essen) above which a work is refused: music21 parses some 50 kB
of .mxl a second, so that no single work can hold up the rest for more than some 15 s."""

FORMATS = (".mxl", ".xml", ".krn", ".abc")  # in order of preference; .rntxt holds analyses

DANCES = "Reel|Hornpipe|SlipJig|Slipjig|Jig|Strathspey|LancashireClog|Clog|HighlandFling|Fling"

# Madrigals printed as parts of one piece (prima parte, seconda parte ...): Il terzo libro (1592)
# and Il quinto libro (1605).
MONTEVERDI_CYCLES = (
    ("3.8", "3.9", "3.10"),
    ("3.14", "3.15", "3.16"),
    ("3.19", "3.20"),
    ("5.4", "5.5", "5.6", "5.7", "5.8"),
)


@dataclass(frozen=True)
class Work:
    """One work of a music21 corpus, or one movement where movements are files.

    Attributes:
        work_id: Unique among all works; starts with the genre.
        genre: Name of the corpus.
        path: File in music21's corpus.
        group: Works of one group belong together: movements, parts of a cycle, variants of a song.
        title: In words, as far as the file name or the file's head tells.
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
    """All works of a corpus, one file a work, in a stable order.

    Raises:
        UserError: music21 or its corpus is missing.
    """
    folder = corpus_root() / genre
    if genre == "essenFolksong":
        return _essen(folder)
    by_work: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix in FORMATS and path.is_file():
            relative = path.relative_to(folder).with_suffix("").as_posix()
            by_work[_edition_free(genre, relative)].append(path)
    names = sorted(by_work)
    # The preferred format; among editions of one work the shortest name (no "_old", no "-sc").
    paths = [min(by_work[name], key=_preference) for name in names]
    groups = _components([_keys(genre, n, p) for n, p in zip(names, paths, strict=True)])
    return [
        Work(f"{genre}-{_slug(name)}", genre, path, f"{genre}-{group}", _title(name))
        for name, path, group in zip(names, paths, groups, strict=True)
    ]


def _preference(path: Path) -> tuple[int, int, str]:
    return (FORMATS.index(path.suffix), len(path.name), path.name)


def _edition_free(genre: str, name: str) -> str:
    """Name of the work without the mark of an edition."""
    if genre == "bach":
        # bwv112.5 and bwv112.5-sc are two editions; bwv69.6-a belongs to BWV 69a, another cantata.
        return re.sub(r"-(?!a$).*", "", name)
    return re.sub(r"_(old|bak)$", "", name)


def _keys(genre: str, name: str, path: Path) -> list[str]:
    """What ties a work to others: works that share any key are of one group."""
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
        number, title = _trecento(name)
        return [number or _slug(name), *([f"t:{_slug(title).lower()}"] if " " in title else [])]
    tune = re.sub(r"_[A-G]$|No\d$", "", name)
    return [re.sub(rf"({DANCES})$", "", tune).lower() or name.lower()]


def _trecento(name: str) -> tuple[str, str]:
    """Volume and number in *Polyphonic Music of the Fourteenth Century* ("" if none), title."""
    match = re.match(r"(PMFC_\d+(?:[_-][A-Z][a-z]+)?[_-]\d+)[ab]?[-_ ](.*)", name)
    number, title = match.groups() if match else ("", re.sub(r"^PMFC_\d+-", "", name))
    return number, re.sub(r"[_-]+", " ", title).strip()


def _title(name: str) -> str:
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.split("-", 1)[-1] if " " in name else name)
    return re.sub(r"[_ ]+", " ", words).strip()


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
            found = [f"t:{_letters(words)}" if _letters(words) else ""]
            found.append(signature[1] if signature else f"{path.stem}-{number}")
            keys.append([key for key in found if key])
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


def _letters(text: str) -> str:
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z]", "", ascii_text.lower())


def _slug(text: str) -> str:
    """Letters, digits, dots and dashes only: safe as a file name on every system."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9.]+", "-", ascii_text).strip("-.")


def read(work: Work) -> Notation:
    """Notes and bars of a work.

    Raises:
        RefusedSongError: As :func:`parse` and :func:`notation`.
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
        raise RefusedSongError("not_written", f"no meter (M: {', '.join(names) or 'missing'})")
    return notation(parse(work), [(int(m[1]), int(m[2])) for m in found])


def _text(work: Work) -> str | None:
    """The tune in ABC, None for other formats."""
    if work.number is not None:
        return _songs(work.path)[work.number]
    return work.path.read_text("utf-8", "replace") if work.path.suffix == ".abc" else None


def parse(work: Work) -> Any:
    """The work as a music21 score, at sounding pitch.

    Raises:
        RefusedSongError: Too long to parse in reasonable time (:data:`MAX_BYTES`).
        Exception: Whatever music21 raises on a file that it cannot read.
    """
    text = _text(work)
    size = work.path.stat().st_size if text is None else len(text)
    if size > MAX_BYTES[work.path.suffix]:
        raise RefusedSongError("not_written", f"{size} bytes in a {work.path.suffix} file")

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
