"""Is every note of real files read, and does every damaged file give a song or a reason?

``read.py notes FOLDER ...``, ``read.py damaged --nasty DIR --files FILE ...`` and
``read.py speed --before SRC FOLDER ...``; see README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import statistics
import subprocess
import sys
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import mido
from hydra import compose, initialize_config_dir
from symusic.core import ScoreTick

from midigenre.build import make_tokenizer
from midigenre.cli import conf_dir
from midigenre.corpora.folder import midi_files
from midigenre.data.sandbox import Limits, Sandbox, encoded_song
from midigenre.errors import RejectedSongError
from midigenre.files import write_json
from midigenre.midi.read import read_score
from midigenre.tokenizers.base import Tokenizer

RESULTS = Path(__file__).parent / "results"
N_MUTANTS = 100  # of each file
SPECIAL = (
    b"\xff", b"\x00", b"\x80", b"\xf0", b"\xf4", b"\xf7", b"\x00\xff\x2f\x00", b"\xff\x51\x00",
    b"MTrk", b"MTrk\xff\xff\xff\xff", b"MThd", b"\xff\xff\xff\xff\x7f", b"\x9f\xff\xff",
    b"\xc0\xff", b"\xff\x05\xff\xff\xff\x7f", b"\xff\x03\x84\x00", b"\x00\xb0\x7b\x00",
)  # fmt: skip


def tokenizer() -> Tokenizer:
    with initialize_config_dir(str(conf_dir().resolve()), version_base=None):
        return make_tokenizer(compose("prepare", ["tokenizer=remi"]))


# --- every note ----------------------------------------------------------------------------------

Key = tuple[int, int, bool]
"""Onset, pitch, whether it is a drum."""


def heard(data: bytes) -> dict[Key, list[tuple[int, int, int]]]:
    """What mido reads, event by event: of each note its latest end, its track's end and program.

    The latest end is the next note-on or note-off of the pitch and channel in the track at a later
    tick, else the end of the track. The program is the last one in the track, else in the file.
    """
    file = mido.MidiFile(file=io.BytesIO(data), clip=True)
    events: list[list[tuple[int, int, Any]]] = []
    programs: dict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)
    for number, track in enumerate(file.tracks):
        tick, port = 0, 0
        events.append([])
        for message in track:
            tick += message.time
            if message.type == "midi_port":
                port = message.port
            elif message.type == "program_change":
                programs[port, message.channel].append((tick, number, message.program))
            events[-1].append((tick, port, message))
    for changes in programs.values():
        changes.sort(key=lambda change: change[0])
    found: dict[Key, list[tuple[int, int, int]]] = defaultdict(list)
    for number, track in enumerate(events):
        end = track[-1][0] if track else 0
        ticks: dict[tuple[int, int], list[int]] = defaultdict(list)
        for tick, _, message in track:
            if message.type in ("note_on", "note_off"):
                ticks[message.channel, message.note].append(tick)
        own: dict[int, int] = {}
        for tick, port, message in track:
            if message.type == "program_change":
                own[message.channel] = message.program
            elif message.type == "note_on" and message.velocity:
                channel = message.channel
                its = ticks[channel, message.note]
                following = bisect_right(its, tick)
                others = [p for at, n, p in programs[port, channel] if at <= tick and n != number]
                program = own.get(channel, others[-1] if others else 0)
                found[tick, message.note, channel == 9].append(
                    (its[following] if following < len(its) else end, end, program)
                )
    return found


def compared(data: bytes, score: ScoreTick) -> Counter[str]:
    """How the notes that were read differ from what mido reads."""
    expected = heard(data)
    read: dict[Key, list[tuple[int, int]]] = defaultdict(list)
    for track in score.tracks:
        for n in track.notes:
            read[n.time, n.pitch, track.is_drum].append((n.end, track.program))
    counts: Counter[str] = Counter(notes=sum(map(len, expected.values())))
    for key, notes in expected.items():
        counts["lost"] += max(0, len(notes) - len(read[key]))
        if len(notes) != len(read[key]):
            continue
        ends = Counter(end for end, _ in read[key])
        latest = Counter(end for end, _, _ in notes)
        counts["end: as mido has it"] += (ends & latest).total()
        last = max(end for _, end, _ in notes)
        for end in (ends - latest).elements():
            how = "no length" if end == key[0] else "in time" if end <= last else "too late"
            counts[f"end: {how}"] += 1
        if not key[2]:
            counts["other program"] += sorted(p for *_, p in notes) != sorted(
                p for _, p in read[key]
            )
    counts["invented"] = sum(max(0, len(read[key]) - len(expected.get(key, []))) for key in read)
    return counts


def check_notes(paths: Sequence[Path]) -> dict[str, Any]:
    total: Counter[str] = Counter()
    repairs: Counter[str] = Counter()
    refused: dict[str, str] = {}
    differing: dict[str, dict[str, int]] = {}
    unread_by_mido: dict[str, str] = {}
    for path in paths:
        data, made = path.read_bytes(), cast(dict[str, int], {})
        try:
            score = read_score(data, made)
        except RejectedSongError as error:
            refused[str(path)] = str(error)
            continue
        repairs.update(made.keys())
        try:
            counts = compared(data, score)
        except (OSError, ValueError, EOFError, IndexError, KeyError, LookupError) as error:
            unread_by_mido[str(path)] = f"{type(error).__name__}: {error}"
            continue
        total.update(counts)
        if counts["lost"] or counts["invented"]:
            differing[str(path)] = {k: v for k, v in counts.items() if v}
    return {
        "files": len(paths), "notes": dict(total), "files_repaired": dict(repairs),
        "differing": differing, "refused": refused, "mido_fails": unread_by_mido,
    }  # fmt: skip


# --- damaged files -------------------------------------------------------------------------------


def mutant(data: bytes, seed: str) -> bytes:
    """Bytes changed, left out, put in, repeated and cut off, as the seed has it."""
    draw, out = random.Random(seed), bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 3, 8, 30, 200))):
        at = draw.randrange(len(out) + 1)
        match draw.randrange(5):
            case 0:
                out[at : at + 1] = draw.randbytes(1)
            case 1:
                del out[at : at + draw.choice((1, 1, 2, 7, 40, 4000))]
            case 2:
                out[at:at] = draw.choice(SPECIAL)
            case 3:
                out[at:at] = out[draw.randrange(len(out) + 1) :][: draw.randrange(600)]
            case 4 if draw.random() < 0.2:
                del out[at:]
    return bytes(out)


def check_damaged(nasty: Iterable[Path], paths: Sequence[Path]) -> dict[str, Any]:
    """Reads each as ``prepare`` does, in the guard."""
    guard, spec, limits = Sandbox(), tokenizer().spec, Limits()
    answers: dict[str, dict[str, Any]] = {}
    jobs = [(path.name, path.read_bytes()) for path in nasty]
    jobs += [
        (f"{path.name}#{i}", mutant(path.read_bytes(), f"{path.name}#{i}"))
        for path in paths
        for i in range(N_MUTANTS)
    ]
    try:
        guard.ready(spec)
        for name, data in jobs:
            began = time.perf_counter()
            about: dict[str, Any]
            try:
                found = guard.read("encode", data, spec, limits)
                about = {"notes": len(found["columns"]["pitch"]), "repairs": found["repairs"]}
            except RejectedSongError as error:
                about = {"reason": error.reason, "detail": error.detail}
            answers[name] = about | {"seconds": round(time.perf_counter() - began, 4)}
    finally:
        guard.close()
    return answers


def outcomes(answers: Iterable[dict[str, Any]]) -> dict[str, Any]:
    answers = list(answers)
    reasons = Counter(answer["reason"] for answer in answers if "reason" in answer)
    return {
        "files": len(answers),
        "read": sum("notes" in answer for answer in answers),
        "refused": dict(reasons),
        "refused_without_a_detail": sum(not answer.get("detail", "x") for answer in answers),
        "slowest_seconds": max(answer["seconds"] for answer in answers),
    }


# --- speed ---------------------------------------------------------------------------------------

ROUNDS = 5


def serve(conf: str) -> None:
    """The child: times ``encoded_song`` of each path that it is given, a line each."""
    with initialize_config_dir(conf, version_base=None):
        tok = make_tokenizer(compose("prepare", ["tokenizer=remi"]))
    for line in sys.stdin:
        data = Path(line.rstrip("\n")).read_bytes()
        began = time.process_time()
        with contextlib.suppress(RejectedSongError):
            encoded_song(data, tok)
        print(time.process_time() - began, flush=True)


def check_speed(before: Path, paths: Sequence[Path]) -> dict[str, Any]:
    """CPU time of each file with the source before and with this one, by turns; best of rounds."""
    here = Path(__file__).resolve()
    sides = {"before": before.resolve().parent, "now": here.parents[2]}
    children = {
        # Each version serves itself by its own script: modules may have other names there.
        name: subprocess.Popen(
            [sys.executable, root / here.relative_to(here.parents[2]), "serve", root / "conf"],
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(root / "src")},
        )
        for name, root in sides.items()
    }  # fmt: skip
    best: dict[str, dict[Path, float]] = {name: {} for name in sides}
    for i in range(ROUNDS):
        for j, path in enumerate(paths):
            for name in sorted(sides, reverse=(i + j) % 2 == 0):
                child = children[name]
                assert child.stdin is not None
                assert child.stdout is not None
                print(path, file=child.stdin, flush=True)
                took = float(child.stdout.readline())
                best[name][path] = min(best[name].get(path, took), took)
    for child in children.values():
        child.communicate()
    ratios = [best["now"][path] / best["before"][path] for path in paths]
    return {
        "files": len(paths),
        "ms_before": 1e3 * statistics.mean(best["before"].values()),
        "ms_now": 1e3 * statistics.mean(best["now"].values()),
        "median_ratio": statistics.median(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    notes = commands.add_parser("notes")
    notes.add_argument("folders", nargs="+", type=Path)
    damaged = commands.add_parser("damaged")
    damaged.add_argument("--nasty", type=Path, required=True)
    damaged.add_argument("--files", nargs="+", type=Path, required=True)
    speed = commands.add_parser("speed")
    speed.add_argument("--before", type=Path, required=True, help="the other version's src")
    speed.add_argument("--per-folder", type=int, default=30)
    speed.add_argument("folders", nargs="+", type=Path)
    commands.add_parser("serve").add_argument("conf")
    args = parser.parse_args()
    if args.command == "serve":
        serve(args.conf)
        return
    found: dict[str, Any]
    if args.command == "notes":
        found = {str(folder): check_notes(list(midi_files(folder))) for folder in args.folders}
    elif args.command == "damaged":
        answers = check_damaged(sorted(args.nasty.glob("*.mid")), args.files)
        found = {
            "nasty": outcomes(a for name, a in answers.items() if "#" not in name),
            "mutants": outcomes(a for name, a in answers.items() if "#" in name),
            "answers": {name: a for name, a in answers.items() if "#" not in name},
        }
    else:
        chosen: dict[str, list[Path]] = {}
        for folder in args.folders:
            every = list(midi_files(folder))
            chosen[folder.name] = every[:: max(1, len(every) // args.per_folder)]
        found = {name: check_speed(args.before, paths) for name, paths in chosen.items()}
    write_json(RESULTS / f"{args.command}.json", found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
