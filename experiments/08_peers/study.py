"""Trains the rows of the peers' tables that have no result yet, and prints the tables.

    python experiments/08_peers/study.py --peers DIR                       # all of it: many hours
    python experiments/08_peers/study.py --peers DIR --only pianist8 --seeds 0
    python experiments/08_peers/study.py --peers DIR --leaks               # what the splits leak
    python experiments/08_peers/study.py --table                           # from what is kept

``DIR`` holds the archives ``pianist8.tar.xz``, ... Each training takes a fixed number of steps, so
that a loaded machine changes the minutes alone. One that was stopped resumes; one that has ended
leaves ``results/<table>-<row>-<seed>.json``, which a later call does not train again. The test sets
are read by the last evaluation of each run, and nothing is chosen by them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tables import TABLES, Table, overrides, unlabelled

from midigenre.evaluation.bootstrap import score
from midigenre.evaluation.compare import markdown_table
from midigenre.evaluation.predictions import TABLES_FILE, read_tables
from midigenre.files import read_json, whole, write_json
from midigenre.spec import UNKNOWN

sys.path.append(str(Path(__file__).parents[1]))
from quietly import training

RESULTS = Path(__file__).parent / "results"
SCRATCH, PRETRAINED, ADAMW = "scratch", "pretrained", "adamw"
PRETRAINING = ["asap", "pop909"]
STEPS = {SCRATCH: 1000, PRETRAINED: 1000, ADAMW: 1000, "mlm": 8000}
EVERY = 100  # steps between two validations


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, help="folder of the archives")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--rows", nargs="+", choices=(SCRATCH, PRETRAINED, ADAMW),
                        default=[SCRATCH, PRETRAINED])  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/08_peers"))
    parser.add_argument("--leaks", action="store_true", help="audit the published splits alone")
    parser.add_argument("--table", action="store_true", help="print what is kept")
    args = parser.parse_args()
    if not args.table:
        if args.peers is None:
            parser.error("--peers DIR is missing: the folder of pianist8.tar.xz and the others")
        args.out = args.out.resolve()  # paths in a manifest are relative to the manifest
        work = args.out / "corpora"
        work.mkdir(parents=True, exist_ok=True)
        if args.leaks:
            write_json(RESULTS / "leaks.json", {n: _leaks(n, args.peers, work) for n in args.only})
            print(leaks_table(read_json(RESULTS / "leaks.json")))
            return
        for seed in args.seeds:
            for name in args.only:
                for row in args.rows:
                    _cell(name, row, seed, args.peers, args.out, work)
    print(report(read_results()))
    if (RESULTS / "leaks.json").is_file():
        print("\n" + leaks_table(read_json(RESULTS / "leaks.json")))


def _cell(name: str, row: str, seed: int, peers: Path, out: Path, work: Path) -> None:
    """Trains one row of a table with one seed, unless its result is there."""
    kept = RESULTS / f"{name}-{row}-{seed}.json"
    if kept.is_file():
        return
    more = ["optim=adamw"] if row == ADAMW else []
    if row == PRETRAINED:
        before = out / "mlm"  # one for all seeds
        _train(before, "mlm_best", "mlm", 0, unlabelled(PRETRAINING, peers, work))
        more = [f"init_from={before}"]
    folder = out / name / row / str(seed)
    _train(folder, "genre_best", row, seed, [*overrides(TABLES[name], peers, work), *more])
    with whole(kept) as part:  # on one line: indented, a table of folds has 60,000
        part.write_text(json.dumps(result(folder, TABLES[name], row, seed)) + "\n")
    print(f"{kept.name} written", file=sys.stderr)


def _train(folder: Path, recipe: str, row: str, seed: int, more: Sequence[str]) -> None:
    begin = [
        f"experiment={recipe}", f"seed={seed}", "trainer.max_time=null",
        f"trainer.max_steps={STEPS[row]}", f"trainer.val_check_interval={EVERY}", *more,
    ]  # fmt: skip
    if (given := training(folder, begin)) is None:
        return
    print(f"midigenre train {' '.join(given)}", file=sys.stderr)
    subprocess.run(
        [sys.executable, "-m", "midigenre", "train", *given],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def result(folder: Path, table: Table, row: str, seed: int) -> dict[str, Any]:
    """What a run's test says: each level's true and predicted classes, without names of files."""
    found: dict[str, Any] = {"row": row, "seed": seed, "levels": {}}
    for level, of in read_tables(folder / TABLES_FILE, [table.label])[table.label].items():
        known = of.select(of.truth_N != UNKNOWN)
        _, piece_N = np.unique(known.piece_N, return_inverse=True)
        # A blend has the encoder alone among its components.
        predicted = {"blend" if known.components else "encoder": known.predicted_N} | known.given
        found["levels"][level] = {
            "classes": list(known.classes),
            "piece": piece_N.tolist(),
            "truth": known.truth_N.tolist(),
            "predicted": {name: classes_N.tolist() for name, classes_N in predicted.items()},
        }
    cost = read_json(folder / "cost.json")
    found["minutes"] = round(cost["fit_seconds"] / 60, 1)
    found["parameters"] = cost["parameters"]
    commit = ["git", "rev-parse", "--short", "HEAD"]
    found["commit"] = subprocess.run(
        commit, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    ).stdout.strip()
    return found


def _leaks(name: str, peers: Path, work: Path) -> dict[str, Any]:
    """What ``prepare`` reports of the duplicates of a table's files, and across its splits."""
    keys = ("task.", "protocol")
    given = [o for o in overrides(TABLES[name], peers, work) if not o.startswith(keys)]
    done = subprocess.run(
        [sys.executable, "-m", "midigenre", "prepare", "tokenizer=octuple", *given],
        check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    report = read_json(Path(done.stdout.strip()) / "report.json")
    found = {key: report["duplicates"][key] for key in ("songs", "groups", "by_kind", "leaks")}
    found["contradictory_groups"] = report["duplicates"]["label_conflicts"]["groups"]
    found["given_splits"] = report["duplicates"]["given_splits"]
    return found | {"files": sum(of["songs"] for of in report["splits"].values())}


def leaks_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The audit as Markdown; where we split ourselves, what a split by file would leak."""
    header = ["", "split", "files", "duplicates (bytes, notes, near)", "in groups",
              "groups with several labels", "validation and test files that are in training, too",
              "with another label", "sharing a piece with training"]  # fmt: skip
    lines = []
    for name, of in found.items():
        leaks = of["leaks"]
        share = f" ({leaks['share']:.1%})" if leaks["share"] else ""
        kinds = ", ".join(str(n) for n in of["by_kind"].values())
        lines.append(
            [name, "published" if of["given_splits"] else "by file", f"{of['files']:,}",
             f"{of['songs']:,} ({kinds})", str(of["groups"]), str(of["contradictory_groups"]),
             f"{leaks['songs']:,}{share}", str(leaks["contradictory"]), f"{leaks['groups']:,}"]
        )  # fmt: skip
    return markdown_table(header, lines, 2)


def read_results() -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The kept results of each table and row, by seed."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {name: defaultdict(list) for name in TABLES}
    for path in sorted(RESULTS.glob("*-*-*.json")):
        name, row, _ = path.stem.rsplit("-", 2)
        found[name][row].append(read_json(path))
    return found


def report(results: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> str:
    """Every table that has a result, as Markdown."""
    return "\n\n".join(
        f"**{name}**\n\n{rows_of(TABLES[name], of)}" for name, of in results.items() if of
    )


def rows_of(table: Table, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """One table: published figures, the baselines, and our rows at every level.

    A cell is the mean over the seeds with its 95 % bootstrap interval over pieces; the last columns
    have the difference from the best baseline of that level.
    """
    levels = list(next(iter(rows.values()))[0]["levels"])
    n = {level: len(next(iter(rows.values()))[0]["levels"][level]["truth"]) for level in levels}
    header = ["", "seeds"]
    header += [f"{level}, n = {n[level]}" for level in levels]
    header += [f"{level}, minus best baseline" for level in levels]
    lines = [
        [name, "", *(f"{of:.3f}" if level == table.level else "" for level in levels),
         *[""] * len(levels)]
        for name, of in table.published.items()
    ]  # fmt: skip
    baselines: dict[str, list[str]] = {}
    for row, of_seeds in rows.items():
        cells: dict[str, dict[str, str]] = defaultdict(dict)
        for level in levels:
            scored = _scored([of["levels"][level] for of in of_seeds])
            for name, (value, lead) in scored.items():
                cells[name][level] = value
                cells[name][f"{level} lead"] = lead
        for name, of in cells.items():
            columns = [of.get(level, "") for level in levels]
            if name in ("encoder", "blend"):
                leads = [of.get(f"{level} lead", "") for level in levels]
                lines.append([f"{name}, {row}", str(len(of_seeds)), *columns, *leads])
            else:
                baselines[name] = [name, "", *columns, *[""] * len(levels)]
    lines[len(table.published) : len(table.published)] = baselines.values()
    return markdown_table(header, lines, 1)


def _scored(seeds: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """Accuracy of each classifier, mean over the seeds, and our lead over the best baseline."""
    first = seeds[0]
    names = [name for name in first["predicted"] if all(name in of["predicted"] for of in seeds)]
    predicted = [np.array(of["predicted"][name]) for name in names for of in seeds]
    scores = score(np.array(first["truth"]), predicted, np.array(first["piece"]),
                   len(first["classes"]))  # fmt: skip
    exact_P, drawn_PR = scores.exact["accuracy"], scores.resampled["accuracy"]
    at = {name: slice(i * len(seeds), (i + 1) * len(seeds)) for i, name in enumerate(names)}
    theirs = [name for name in names if name not in ("encoder", "blend", "without_encoder")]
    best = max(theirs, key=lambda name: exact_P[at[name]].mean())
    found = {}
    for name, of in at.items():
        low, high = np.percentile(drawn_PR[of].mean(0), (2.5, 97.5))
        lead = scores.lead("accuracy", of, at[best])
        found[name] = (
            f"{exact_P[of].mean():.3f} [{low:.3f}, {high:.3f}]",
            f"{lead['difference']:+.3f} [{lead['ci95'][0]:+.3f}, {lead['ci95'][1]:+.3f}] {best}",
        )
    return found


if __name__ == "__main__":
    main()
