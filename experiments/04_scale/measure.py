"""Time, memory and disk of a command and all its processes; see README.md.

``measure.py -- COMMAND`` runs it once. With ``--sizes N1 N2`` it runs once for each number, which
stands for ``{n}`` in the command, and says what one more file costs. ``{home}`` is a fresh folder.
With ``--truth CORPUS SHARDS`` it says how many of the copies that ``make_corpus.py`` planted were
found.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from midigenre.files import read_csv, write_json

KINDS = ("main", "main_anonymous", "tree", "main_rss", "tree_rss")
UNITS = {"darwin": 1}  # of ru_maxrss in bytes; elsewhere it counts in KiB


class Sampler:
    """Peaks of memory and the CPU time of a process and its descendants.

    Memory is the proportional set size where the system gives it: a page that several processes
    share, as those of mapped files and of forked workers, counts once altogether. Elsewhere it is
    the resident set size, which counts it in every process. ``anonymous`` is the part of it that
    only the process itself can give back: pages of mapped files, which the kernel drops when it
    needs room, are left out.
    """

    def __init__(self, pid: int) -> None:
        self.main = psutil.Process(pid)
        self.has_pss = hasattr(psutil.Process().memory_full_info(), "pss")
        self.peaks = dict.fromkeys(KINDS, 0)
        self.processes = 0
        self._cpu: dict[tuple[int, float], float] = {}

    def sample(self) -> None:
        """Looks once; processes that have just ended are left out."""
        found = dict.fromkeys(KINDS, 0)
        count = 0
        with suppress(psutil.Error):
            for process in [self.main, *self.main.children(recursive=True)]:
                with suppress(psutil.Error):
                    memory, cpu = process.memory_full_info(), process.cpu_times()
                    size = memory.pss if self.has_pss else memory.rss
                    count += 1
                    found["tree"] += size
                    found["tree_rss"] += memory.rss
                    if process == self.main:
                        found["main"], found["main_rss"] = size, memory.rss
                        found["main_anonymous"] = _anonymous(process.pid)
                    self._cpu[process.pid, process.create_time()] = cpu.user + cpu.system
        self.peaks = {name: max(self.peaks[name], size) for name, size in found.items()}
        self.processes = max(self.processes, count)

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all processes, up to the last look at each."""
        return sum(self._cpu.values())


def _anonymous(pid: int) -> int:
    """Bytes of a process's own pages (Pss_Anon, Linux 5.9 and later); 0 where nobody tells."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    sizes = (int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))
    return 1024 * next(sizes, 0)


def measure(command: Sequence[str], interval: float, disk: Path | None) -> dict[str, Any]:
    """Runs a command to its end.

    Args:
        command: Its words; what it prints goes where ours does, but all of it to stderr.
        interval: Seconds between two looks at its processes.
        disk: Folder whose growth is its output.

    Returns:
        ``wall_s``; ``cpu_s``; ``peak_main``, ``peak_main_anonymous`` and ``peak_tree`` in bytes
        (see :class:`Sampler`) and the same as resident sets; ``largest_process_rss``, the kernel's
        own peak of whichever process was largest, which no sampling can miss; ``disk_bytes``.
    """
    before = size_of(disk)
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=sys.stderr)
    try:
        sampler = Sampler(process.pid)
        while True:
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            sampler.sample()
            time.sleep(interval)
    except BaseException:
        process.kill()
        raise
    wall = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"measure: {' '.join(command)} ended with {process.returncode}; nothing to report")
    # The kernel counts workers that were waited for, the samples those that were not.
    kernel = usage.ru_utime + usage.ru_stime
    return {
        "wall_s": round(wall, 2),
        "cpu_s": round(max(kernel, sampler.cpu_s), 2),
        "memory": "pss" if sampler.has_pss else "rss",
        "peak_main": sampler.peaks["main"],
        "peak_main_anonymous": sampler.peaks["main_anonymous"],
        "peak_tree": sampler.peaks["tree"],
        "peak_main_rss": sampler.peaks["main_rss"],
        "peak_tree_rss": sampler.peaks["tree_rss"],
        "largest_process_rss": usage.ru_maxrss * UNITS.get(sys.platform, 1024),
        "processes": sampler.processes,
        "disk_bytes": size_of(disk) - before,
    }


def size_of(folder: Path | None) -> int:
    """Bytes that the files below a folder hold; 0 for none."""
    if folder is None:
        return 0
    total = 0
    for where, _, files in os.walk(folder):
        for name in files:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(where, name)).st_size
    return total


def at_sizes(
    command: Sequence[str], sizes: Sequence[int], interval: float, homes: Path
) -> dict[str, Any]:
    """Runs a command once for each number of files, each in a home of its own.

    Returns:
        ``runs``, one a size, and ``slopes``: what one more file costs between two neighbouring
        sizes, as bytes of the main process, of the tree and of disk, and as seconds. A constant,
        such as the libraries, drops out.
    """
    runs = []
    for n in sizes:
        with tempfile.TemporaryDirectory(dir=homes, prefix=f"home-{n}-") as home:
            words = [w.replace("{n}", str(n)).replace("{home}", home) for w in command]
            run = measure(words, interval, Path(home))
        runs.append({"files": n, "files_per_s": round(n / run["wall_s"], 1)} | run)
        print(f"measure: {json.dumps(runs[-1])}", file=sys.stderr)
    slopes = [
        {"from": a["files"], "to": b["files"]}
        | {
            f"{name}_per_file": round((b[name] - a[name]) / (b["files"] - a["files"]), 5)
            for name in (
                "peak_main",
                "peak_main_anonymous",
                "peak_tree",
                "disk_bytes",
                "wall_s",
                "cpu_s",
            )
        }
        for a, b in pairwise(runs)
    ]
    return {"runs": runs, "slopes": slopes}


def recall(truth: Sequence[dict[str, str]], found: Sequence[dict[str, str]]) -> dict[str, Any]:
    """How many planted copies lie in one group with their original.

    Args:
        truth: Rows of ``truth.csv``.
        found: Rows of ``duplicates.csv`` (``group``, ``song_id``).

    Returns:
        ``recall``, a kind of copy with the number found and planted; ``false_links``, how many
        pairs of families the groups join that have nothing in common (0 if none is wrong).
    """
    group_of = {row["song_id"]: row["group"] for row in found}
    kinds: dict[str, list[bool]] = defaultdict(list)
    for row in truth:
        group = group_of.get(row["path"])
        kinds[row["copy"]].append(group is not None and group == group_of.get(row["original"]))
    family = {row["path"]: row["original"] for row in truth}
    joined: dict[str, set[str]] = defaultdict(set)
    for song, group in group_of.items():
        joined[group].add(family.get(song, song))
    return {
        "recall": {
            kind: {"found": sum(hits), "planted": len(hits)} for kind, hits in sorted(kinds.items())
        },
        "groups": len(joined),
        "false_links": sum(len(families) - 1 for families in joined.values()),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of files, rising")
    parser.add_argument("--homes", type=Path, help="where homes are made (default: temporary)")
    parser.add_argument("--files", type=int, help="without --sizes: how many files it prepares")
    parser.add_argument("--disk", type=Path, help="without --sizes: the folder that it fills")
    parser.add_argument("--interval", type=float, default=0.25, help="seconds between two looks")
    parser.add_argument("--out", type=Path, help="write the JSON there too")
    parser.add_argument(
        "--truth", type=Path, nargs=2, metavar=("CORPUS", "SHARDS"), help="recall of planted copies"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    args = parser.parse_args()
    args.command = args.command[args.command[:1] == ["--"] :]
    if not args.command and not args.truth:
        parser.error("give a command after --")
    if args.sizes and (
        not any("{n}" in word for word in args.command)
        or any(a >= b for a, b in pairwise(args.sizes))
    ):
        parser.error("--sizes takes rising numbers, and {n} must stand in the command for them")
    return args


def main() -> None:
    args = arguments()
    if args.truth:
        corpus, shards = args.truth
        truth, found = read_csv(corpus / "truth.csv"), read_csv(shards / "duplicates.csv")
        result = recall(truth, found)
    elif args.sizes:
        result = at_sizes(args.command, args.sizes, args.interval, args.homes)
    else:
        result = measure(args.command, args.interval, args.disk)
        if args.files:
            result |= {"files": args.files, "files_per_s": round(args.files / result["wall_s"], 1)}
    if args.command:
        result = {"command": " ".join(args.command)} | result
    print(json.dumps(result, indent=2))
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    main()
