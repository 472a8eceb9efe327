"""The peers' tables of study 08: what is in their archives, how it is split, what was published."""

from __future__ import annotations

import csv
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from midigenre.files import read_csv, write_csv


@dataclass(frozen=True)
class Table:
    """One table of the peers.

    Attributes:
        archive: Name of the archive, ``<archive>.tar.xz``.
        label: The label that is learned.
        level: The level that the published figures are of.
        column: Its column in the archive's ``official.csv``; the label's name if empty.
        group: The column that names the piece of a file; none if empty.
        folds: Folds of a cross-validation over all files; 0 for the published split.
        published: Accuracy of others, as their papers give it.
    """

    archive: str
    label: str
    level: str = "song"
    column: str = ""
    group: str = "group"
    folds: int = 0
    published: dict[str, float] = field(default_factory=dict)


_MIDIBERT = {"RNN on CP": 0.6032, "MidiBERT, REMI": 0.6719, "MidiBERT, CP": 0.7857,
             "MidiBERT, journal version": 0.8175}  # fmt: skip
TABLES = {
    "pianist8": Table("pianist8", "composer", column="genre", group="piece", published=_MIDIBERT),
    "pianist8_cv": Table("pianist8", "composer", column="genre", group="piece", folds=5),
    "emopia_leaky": Table(
        "emopia", "emotion", group="piece",
        published={"RNN on CP": 0.541, "MidiBERT, REMI": 0.677, "MidiBERT, CP": 0.679},
    ),
    "emopia": Table(
        "emopia_official", "emotion",
        published={"logistic regression": 0.581, "LSTM and attention, REMI": 0.615,
                   "LSTM and attention, MIDI-like": 0.684},
    ),
    "emopia_cv": Table("emopia_official", "emotion", folds=5),
    "vgmidi_valence": Table(
        "vgmidi", "valence",
        published={"LSTM": 0.69, "pretrained LSTM": 0.74, "pretrained GPT-2": 0.80},
    ),
    "vgmidi_arousal": Table(
        "vgmidi", "arousal",
        published={"LSTM": 0.63, "pretrained LSTM": 0.79, "pretrained GPT-2": 0.82},
    ),
    "xmidi_genre_cv": Table("xmidi941", "genre", group="", folds=5),
    "xmidi_emotion_cv": Table("xmidi941", "emotion", group="", folds=5),
}  # fmt: skip
"""By name; the last two are the first public figures on XMIDI."""


def overrides(table: Table, peers: Path, work: Path) -> list[str]:
    """What ``midigenre train`` is told of a table; its archive is unpacked into ``work``."""
    root = _unpacked(table.archive, peers, work)
    found = [f"task.labels=[{table.label}]"]
    if table.folds:
        found += ["protocol=crossval", f"protocol.folds={table.folds}"]
    if not (root / "official.csv").is_file():
        return [*found, "corpus=xmidi", f"corpus.root={root}", "labels.min_songs=1"]
    path = work / f"{table.archive}-{table.label}.csv"
    rows = [
        {
            "path": row["path"],
            table.label: row[table.column or table.label],
            "group": row[table.group],
            **({} if table.folds else {"split": row["split"]}),
        }
        for row in read_csv(root / "official.csv")
    ]
    write_csv(path, rows, list(rows[0]))
    return [
        *found, "corpus=manifest", f"corpus.path={path}", f"corpus.root={root}",
        f"corpus.labels=[{table.label}]",
    ]  # fmt: skip


def unlabelled(archives: list[str], peers: Path, work: Path) -> list[str]:
    """What ``midigenre train`` is told of music for pretraining: files of a class of its own."""
    path = work / f"{'-'.join(archives)}.csv"
    roots = [_unpacked(archive, peers, work) for archive in archives]
    files = [file for root in roots for file in sorted(root.rglob("*.mid*"))]
    with path.open("w", newline="", encoding="utf-8") as out:
        table = csv.writer(out)
        table.writerow(["path", "genre", "group"])
        # The performances of a work, and the versions of a song, lie in one folder.
        table.writerows([file, "music", file.parent] for file in files)
    return ["corpus=manifest", f"corpus.path={path}"]


def _unpacked(archive: str, peers: Path, work: Path) -> Path:
    root = work / archive
    if not root.is_dir():
        with tarfile.open(peers / f"{archive}.tar.xz") as file:
            file.extractall(work, filter="data")
    return root
