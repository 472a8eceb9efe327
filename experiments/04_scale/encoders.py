"""Time of our encoders beside MidiTok's, on the same files in the same minutes; see README.md.

``tokens`` is a cleaned song to ids (MidiTok: its ``encode`` of the same score, already quantised).
``path`` is a file to ids (MidiTok: ``tokenizer(path)``, with its own reading and quantising). Ten
files are timed with one and at once with the other, so that a busy machine slows both and each has
the caches to itself, as in a preparation. Both are one thread that never waits, so that time of the
CPU is time of the clock on a free core; both are written down.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from numpy.typing import NDArray

from midigenre.data.sandbox import read_song
from midigenre.errors import RejectedSongError
from midigenre.files import write_json
from midigenre.midi.song import DRUMS
from midigenre.tokenizers.miditok import MidiTokTokenizer

CONF = Path(__file__).resolve().parents[2] / "conf"
TOKENIZERS = ("remi", "cp", "octuple")
BLOCK = 10  # files that one side does before the other


def tokenizer(name: str) -> MidiTokTokenizer:
    """A tokenizer of ``conf/tokenizer``."""
    with initialize_config_dir(str(CONF), version_base=None):
        made = instantiate(compose(f"tokenizer/{name}").tokenizer, _convert_="all")
    assert isinstance(made, MidiTokTokenizer)
    return made


def full_band(folders: Sequence[Path], n: int) -> list[Path]:
    """``n`` files, evenly over all that have drums and at least three other programs."""
    found = []
    reader = tokenizer("remi")
    for path in sorted({p for folder in folders for p in folder.rglob("*.mid*")}):
        try:
            programs = np.unique(read_song(path.read_bytes(), reader)[0].notes.program)
        except RejectedSongError:
            continue
        if DRUMS in programs and len(programs) >= 4:
            found.append(path)
    if not found:
        sys.exit("encoders: no file with drums and three other programs")
    return [found[i] for i in np.linspace(0, len(found) - 1, min(n, len(found))).astype(int)]


def compare(name: str, paths: Sequence[Path], repeats: int) -> dict[str, Any]:
    """Milliseconds a file of both, and how many times faster we are, by repeat."""
    tok = tokenizer(name)
    theirs = tok._tok
    songs = [read_song(path.read_bytes(), tok)[0] for path in paths]
    scores = [song.to_score() for song in songs]
    encoded = [tok.encode(song) for song in songs]
    same = sum(
        bool(np.array_equal(ours.ids_TF, tok.encode_with_miditok(song).ids_TF))
        for ours, song in zip(encoded, songs, strict=True)
    )
    result: dict[str, Any] = {
        "identical": same,
        "fallbacks": sum(bool(ours.fallback) for ours in encoded),
        "steps_per_file": sum(len(ours.ids_TF) for ours in encoded) / len(encoded),
        "notes_per_file": sum(len(song.notes) for song in songs) / len(songs),
    }
    calls: dict[str, tuple[Callable[[int], Any], Callable[[int], Any]]] = {
        "tokens": (
            lambda i: tok.encode(songs[i]),
            lambda i: theirs.encode(scores[i], no_preprocess_score=True),
        ),
        "path": (
            lambda i: read_song(paths[i].read_bytes(), tok)[1],
            lambda i: theirs(paths[i]),
        ),
    }
    for what, both in calls.items():
        times = np.array([interleaved(both, len(paths)) for _ in range(repeats)])
        result[what] = {}
        for clock, (ours, others) in zip(("wall", "cpu"), times.transpose(2, 1, 0), strict=True):
            ratios = others / ours
            result[what][clock] = {
                "ours_ms": (1000 * ours / len(paths)).tolist(),
                "miditok_ms": (1000 * others / len(paths)).tolist(),
                "ratios": ratios.tolist(),
                "ratio_median": float(np.median(ratios)),
                "ratio_min": float(ratios.min()),
                "ratio_max": float(ratios.max()),
            }
    return result


def interleaved(
    both: tuple[Callable[[int], Any], Callable[[int], Any]], n: int
) -> NDArray[np.float64]:
    """Seconds of the clock and of the CPU for all files, by turns; shape (2 sides, 2 clocks)."""
    times = np.zeros((2, 2))
    for block in np.array_split(np.arange(n), -(-n // BLOCK)):
        for side, call in enumerate(both):
            wall, cpu = time.perf_counter(), time.process_time()
            for i in block.tolist():
                call(i)
            times[side] += time.perf_counter() - wall, time.process_time() - cpu
    return times


def table(results: dict[str, dict[str, Any]]) -> str:
    """Medians over the repeats, as Markdown."""
    lines = [
        "| tokenizer | what | clock | MidiTok, ms | ours, ms | times faster (min–max) |",
        "|---|---|---|---:|---:|---:|",
    ]
    for name, result in results.items():
        for what, clock in product(("tokens", "path"), ("cpu", "wall")):
            r = result[what][clock]
            theirs, ours = statistics.median(r["miditok_ms"]), statistics.median(r["ours_ms"])
            spread = f"{r['ratio_median']:.0f} ({r['ratio_min']:.0f}–{r['ratio_max']:.0f})"
            lines.append(f"| {name} | {what} | {clock} | {theirs:.2f} | {ours:.3f} | {spread} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=Path, nargs="+", required=True, help="folders of MIDI")
    parser.add_argument("--n", type=int, default=120, help="files, spread over all full-band ones")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokenizers", nargs="+", default=list(TOKENIZERS), choices=TOKENIZERS)
    parser.add_argument("--out", type=Path, help="write the JSON there too")
    args = parser.parse_args()
    if args.n < 1 or args.repeats < 1:
        parser.error("--n and --repeats must be 1 or more")
    warnings.simplefilter("ignore")  # MidiTok's on meters that it rewrites
    paths = full_band(args.files, args.n)
    results = {name: compare(name, paths, args.repeats) for name in args.tokenizers}
    report = {
        "files": len(paths),
        "repeats": args.repeats,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("miditok", "symusic", "numpy")},
        "machine": platform.machine(),
        "load": os.getloadavg()[0],
        "results": results,
    }
    if args.out:
        write_json(args.out, report)
    print(table(results))
    same = {name: f"{r['identical']} of {len(paths)}" for name, r in results.items()}
    print(f"\n{len(paths)} files, {args.repeats} repeats; identical ids: {json.dumps(same)}")


if __name__ == "__main__":
    main()
