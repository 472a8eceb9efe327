"""Recall of the search for near duplicates, by kind of change; see README.md.

The base is every readable MIDI file below some folders, sketched as a preparation does it. Of ``n``
of its songs one copy is planted for each kind of change, and ``near_pairs`` searches the base and
the copies of one kind. A copy is found if it lies in one group with its original. Songs of drums
alone have a table of their own.

Songs are drawn whether they have a sketch or not: a copy that says too little is missed. Copies are
made of songs on a grid of 480 ticks a quarter note, and are not written to files and read again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import binomtest  # type: ignore[attr-defined]

from midigenre.data.duplicates import ROW, SKETCH, near_pairs, sketch
from midigenre.data.sandbox import _SKETCH_GRID
from midigenre.errors import RejectedSongError
from midigenre.files import write_json
from midigenre.midi.clean import clean
from midigenre.midi.read import read_score
from midigenre.midi.song import DRUMS, Grid, NoteTable, Song

RULE = "|---|---:|---:|---:|---:|"
FINE = Grid(480, max_song_bars=_SKETCH_GRID.max_song_bars)

Random = np.random.Generator
Change = Callable[[Song, Random], Song]
"""Makes a copy; the song itself where it does not apply."""


def changed(song: Song, **columns: Any) -> Song:
    """With other columns; notes that left the range of MIDI are dropped."""
    notes = NoteTable.of(**(song.notes.columns() | columns))
    return only(replace(song, notes=notes), (notes.pitch >= 0) & (notes.pitch < 128))


def only(song: Song, which: NDArray[np.bool_]) -> Song:
    return replace(song, notes=song.notes.select(which))


def plus(song: Song, **more: Any) -> Song:
    old = song.notes.columns()
    return changed(song, **{name: np.append(old[name], more[name]) for name in old})


def pitched(song: Song) -> NDArray[np.bool_]:
    return np.asarray(song.notes.program != DRUMS)


def after(song: Song, share: float) -> NDArray[np.bool_]:
    """Which notes come after this share of the time between the first and the last onset."""
    first, last = song.notes.onset.min(), song.notes.onset.max()
    return np.asarray(song.notes.onset >= first + share * (last - first))


def ticks(song: Song, _: Random, by: float) -> Song:
    onset, duration = (np.round(t * by) for t in (song.notes.onset, song.notes.duration))
    return changed(song, onset=onset, duration=np.maximum(1, duration))


def jitter(song: Song, random: Random, ms: float) -> Song:
    """Normal noise on every onset; ``ms`` is its standard deviation at the first tempo."""
    noise = random.normal(0, ms / 60_000 * song.tempo_qpm[0] * song.tpq, len(song.notes))
    return changed(song, onset=np.maximum(0, np.round(song.notes.onset + noise)))


def transposed(song: Song, random: Random) -> Song:
    by = random.choice([-6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6])
    return changed(song, pitch=song.notes.pitch + by * pitched(song))


def programs(song: Song, random: Random) -> Song:
    new = np.append(random.permutation(128), DRUMS)  # drums, -1, are the last one
    return changed(song, program=new[song.notes.program])


def octave(song: Song, random: Random) -> Song:
    """One program doubled, an octave above or below."""
    which = random.choice(np.unique(song.notes.program[pitched(song)]))
    part = song.notes.select(song.notes.program == which)
    return plus(song, **(part.columns() | {"pitch": part.pitch + random.choice([-12, 12])}))


def added(song: Song, random: Random) -> Song:
    """A new program with a random walk, in eighths with rests, up to the last onset."""
    onset = np.arange(0, song.notes.onset.max() + 1, song.tpq // 2)
    onset = onset[random.random(len(onset)) < 0.6]
    pitch = np.clip(60 + np.cumsum(random.integers(-4, 5, len(onset))), 40, 90)
    free = np.setdiff1d(np.arange(128), song.notes.program)
    others = {"duration": song.tpq // 2, "velocity": 80, "program": random.choice(free)}
    same = {name: np.full(len(onset), value) for name, value in others.items()}
    return plus(song, onset=onset, pitch=pitch, **same)


def dropped(song: Song, random: Random) -> Song:
    parts = np.unique(song.notes.program[pitched(song)])
    return song if len(parts) < 3 else only(song, song.notes.program != random.choice(parts))


def first_cut(song: Song, _: Random) -> Song:
    rest = only(song, after(song, 0.25))
    return changed(rest, onset=rest.notes.onset - rest.notes.onset.min())


DRUM_SAFE: dict[str, Change] = {
    "tempo × 0.8": lambda song, _: replace(song, tempo_qpm=song.tempo_qpm * 0.8),
    "tempo × 1.2": lambda song, _: replace(song, tempo_qpm=song.tempo_qpm * 1.2),
    **{f"ticks × {by}": partial(ticks, by=by) for by in (0.8, 0.9, 1.1, 1.2)},
    "first 25% cut": first_cut,
    "last 25% cut": lambda song, _: only(song, ~after(song, 0.75)),
    **{f"onsets jittered {ms} ms": partial(jitter, ms=ms) for ms in (10, 20)},
}
CHANGES: dict[str, Change] = {
    "transposed": transposed, **DRUM_SAFE, "other programs": programs,
    "all on piano": lambda song, _: changed(song, program=np.where(pitched(song), 0, DRUMS)),
    "octave doubled": octave, "part added": added, "part dropped (of 3 or more)": dropped,
    "drums off": lambda song, _: song if pitched(song).all() else only(song, pitched(song)),
    "key, programs, first 25% cut": lambda song, r: first_cut(programs(transposed(song, r), r), r),
}  # fmt: skip


def groups(n: int, pairs_P2: NDArray[np.int64]) -> NDArray[np.int64]:
    """The group of each of ``n`` songs that pairs of their indices link, shape (n,)."""
    links = (np.ones(len(pairs_P2), bool), tuple(pairs_P2.T))
    graph = coo_array(links, (n, n))  # type: ignore[no-untyped-call]
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def silent(sketches_NR: NDArray[np.uint32]) -> int:
    """How many songs have no sketch."""
    return int((sketches_NR[:, [SKETCH, ROW - 1]].max(axis=1) == 0).sum())


class Base:
    """The songs among which copies are sought, and what a search among them alone finds."""

    def __init__(self, folders: Sequence[Path], skip: Sequence[str]) -> None:
        self.paths, self.names = list[Path](), list[str]()  # names relative to their folder
        rows, drums_only, seconds, refused = [], [], 0.0, 0
        for folder, path in ((f, p) for f in folders for p in sorted(f.rglob("*"))):
            name = path.relative_to(folder)
            if path.suffix.lower() not in (".mid", ".midi") or {*name.parts} & {*skip}:
                continue
            try:
                score = read_score(path.read_bytes())
                begin = time.process_time()
                song = clean(score, _SKETCH_GRID)
            except RejectedSongError:
                refused += 1
                continue
            rows.append(sketch(song))
            seconds += time.process_time() - begin
            drums_only.append(not pitched(song).any())
            self.paths.append(path)
            self.names.append(name.as_posix())
        if not rows:
            raise SystemExit(
                f"near_recall: no readable MIDI file below {', '.join(map(str, folders))}"
            )
        self.sketches_NR, self.drums_only = np.stack(rows), np.array(drums_only)
        begin = time.process_time()
        pairs = near_pairs(self.sketches_NR)
        searched = round(time.process_time() - begin, 3)
        self.group = groups(len(rows), pairs)
        self.report: dict[str, Any] = {
            "songs": len(rows), "songs of drums alone": sum(drums_only), "files refused": refused,
            "songs without a sketch": silent(self.sketches_NR),
            "pairs": len(pairs), "songs of the largest group": int(np.bincount(self.group).max()),
            "CPU s of a sketch": round(seconds / len(rows), 5), "CPU s of the search": searched,
            "linked": [[self.names[a], self.names[b]] for a, b in pairs.tolist()],
        }  # fmt: skip

    def draw(self, n: int, drums_only: bool, random: Random) -> list[int]:
        """At most ``n`` songs, in turn one of each subfolder of the given folders."""
        by_folder: dict[str, list[int]] = {}
        for i in random.permutation(np.flatnonzero(self.drums_only == drums_only)).tolist():
            by_folder.setdefault("".join(self.names[i].split("/")[:-1][:1]), []).append(i)
        turns = [(turn, name, i) for name, of in by_folder.items() for turn, i in enumerate(of)]
        return [i for _, _, i in sorted(turns)[:n]]


def plant(base: Base, drawn: Sequence[int], change: str, seed: int) -> dict[str, Any]:
    """Plants the copies of one change and searches for them.

    Returns:
        A row of the table. ``false_links`` are copies in one group with a song, or a copy of one,
        of another group than their original's, ``false_pairs`` the names of songs linked so (of a
        copy its original's). ``interval`` is None without copies.
    """
    rows, originals = [], []
    for i in drawn:
        random = np.random.default_rng((seed, [*CHANGES].index(change), i))
        song = clean(read_score(base.paths[i].read_bytes()), FINE)
        copy = CHANGES[change](song, random)
        if copy is not song and len(copy.notes):
            rows.append(sketch(clean(copy.to_score(), _SKETCH_GRID)))
            originals.append(i)
    n, copies = len(base.paths), np.array(originals, np.int64)
    sketches = np.concatenate([base.sketches_NR, np.array(rows, np.uint32).reshape(-1, ROW)])
    pairs = near_pairs(sketches)
    group = groups(len(sketches), pairs)
    song_of = np.r_[np.arange(n), copies]
    before = base.group[song_of]
    joins = np.bincount(np.unique(np.stack([group, before]), axis=1)[0]) > 1
    false = song_of[pairs[before[pairs[:, 0]] != before[pairs[:, 1]]]]
    found = int((group[n:] == group[copies]).sum())
    wilson = binomtest(found, len(rows)).proportion_ci(method="wilson") if rows else None
    return {
        "change": change, "copies": len(rows), "found": found,
        "interval": wilson and [round(wilson.low, 4), round(wilson.high, 4)],
        "no_sketch": silent(sketches[n:]), "false_links": int(joins[group[n:]].sum()),
        "false_pairs": [[base.names[a], base.names[b]] for a, b in false.tolist()],
    }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| change | copies | found, % (95% interval) | no sketch | false links |", RULE]
    for row in rows:
        low, high = (100 * end for end in row["interval"] or (0, 1))
        share = f"{100 * row['found'] / max(1, row['copies']):.1f} ({low:.1f}–{high:.1f})"
        cells = (row["change"], row["copies"], share, row["no_sketch"], row["false_links"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=Path, nargs="+", required=True, metavar="DIR")
    parser.add_argument("--skip", nargs="+", default=[], help="names of subfolders to leave out")
    parser.add_argument("--n", type=int, default=200, help="songs of which copies are planted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the JSON there")
    args = parser.parse_args()
    base = Base(args.files, args.skip)
    result: dict[str, Any] = {"n": args.n, "seed": args.seed, "base": base.report}
    for title, alone, changes in (("songs", False, CHANGES), ("drums alone", True, DRUM_SAFE)):
        drawn = base.draw(args.n, alone, np.random.default_rng(args.seed))
        result[title] = [plant(base, drawn, change, args.seed) for change in changes if drawn]
        print(f"{title}:\n\n{table(result[title])}\n")
    counts = [f"| {name} | {n} |" for name, n in base.report.items() if name != "linked"]
    print("| base | |", "|---|---:|", *counts, sep="\n")
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    main()
