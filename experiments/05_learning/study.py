"""Trains the configurations of a part of study 05 in turn, and keeps what they reach.

    python experiments/05_learning/study.py recipe --minutes 40 --seeds 0 1 2 -- corpus=...
    python experiments/05_learning/study.py recipe --table

A training that has ended is kept, one that was stopped resumes. What follows ``--`` goes
to every training. Runs lie in ``runs/05_learning/PART/CONFIGURATION/SEED/STAGE`` of the current
folder (``--out``); ``results/PART.json`` keeps the scores of all that have ended there, of earlier
commands too (``--only``, other seeds), without names of songs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from parts import PARTS, Configuration, command
from scipy.special import stdtrit
from scipy.stats import sem
from versus import ENCODER, MODEL, versus

from midigenre.evaluation.compare import markdown_table
from midigenre.files import read_json, write_json

RESULTS = Path(__file__).parent / "results"
KEPT = ("n", "accuracy", "macro_f1", "roc_auc", "ece", "nll", "ci95", "calibrated", "baselines",
        "components", "within_source")  # fmt: skip


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("--minutes", type=float, help="of each configuration and seed, in all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", help="names of configurations")
    parser.add_argument("--out", type=Path, default=Path("runs/05_learning"))
    parser.add_argument("--results", help="name of the results file; the part's if left out")
    parser.add_argument("--table", action="store_true", help="print the table of what is kept")
    own, _, more = _split(sys.argv[1:])
    args = parser.parse_args(own)
    failed: list[str] = []
    kept = RESULTS / f"{args.results or args.part}.json"
    if not args.table:
        chosen = [c for c in PARTS[args.part] if not args.only or c.name in args.only]
        if unknown := set(args.only or ()) - {c.name for c in chosen}:
            parser.error(f"--only {' '.join(unknown)}: there is "
                         f"{', '.join(c.name for c in PARTS[args.part])}")  # fmt: skip
        jobs = [(c, seed) for seed in args.seeds for c in chosen]
        for i, (configuration, seed) in enumerate(jobs):
            print(f"[{i + 1}/{len(jobs)}] {configuration.name}, seed {seed}", file=sys.stderr)
            where = args.out / (args.results or args.part) / _slug(configuration.name) / str(seed)
            try:
                _train(configuration, args.minutes, seed, where, more)
            except subprocess.CalledProcessError as error:  # its own message stands above
                failed.append(f"{configuration.name}, seed {seed}: exit status {error.returncode}")
        if found := _collect(PARTS[args.part], args, more):
            write_json(kept, found)
    if kept.is_file():
        print(table(read_json(kept)))
    if failed:
        sys.exit("a training failed: " + "; ".join(failed))


def _split(arguments: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    at = list(arguments).index("--") if "--" in arguments else len(arguments)
    return list(arguments[:at]), at < len(arguments), list(arguments[at + 1 :])


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def _train(
    configuration: Configuration, minutes: float | None, seed: int, where: Path, more: Sequence[str]
) -> None:
    before: Path | None = None
    for number, stage in enumerate(configuration.stages):
        folder = where / str(number)
        if not _ended(folder):
            overrides = (
                [f"resume={folder}"]
                if (folder / "config.yaml").is_file()
                else command(
                    stage, minutes, seed, str(folder), None if before is None else str(before), more
                )
            )
            began = time.time()
            subprocess.run(
                [sys.executable, "-m", "midigenre", "train", *overrides],
                check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            print(f"    {folder}: {time.time() - began:.0f} s", file=sys.stderr)
        before = folder


def _ended(folder: Path) -> bool:
    return (folder / "cost.json").is_file()  # the last thing that a run writes


def _collect(
    configurations: Sequence[Configuration], args: argparse.Namespace, more: Sequence[str]
) -> dict[str, Any] | None:
    """What all configurations and seeds have reached that have ended; None if there is none."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=RESULTS.parent, capture_output=True, text=True
    ).stdout.strip()
    found = {}
    for configuration in configurations:
        there = args.out / (args.results or args.part) / _slug(configuration.name)
        seeds = sorted(int(place.name) for place in there.glob("*") if place.name.isdecimal())
        stages = {
            seed: [there / str(seed) / str(n) for n in range(len(configuration.stages))]
            for seed in seeds
        }
        stages = {seed: of for seed, of in stages.items() if all(map(_ended, of))}
        if not stages:
            continue
        found[configuration.name] = {
            "commands": [" ".join(stage.overrides) for stage in configuration.stages],
            "seeds": list(stages),
            "runs": [_run(of) for of in stages.values()],
            "versus": versus([of[-1] for of in stages.values()]),
        }
    if not found:
        return None
    # Where the songs lie is no business of the results.
    shown = [o for o in more if "path" not in o and "root" not in o and "home" not in o]
    return {"part": args.part, "minutes": args.minutes, "commit": commit,
            "overrides": shown, "configurations": found}  # fmt: skip


def _run(stages: Sequence[Path]) -> dict[str, Any]:
    """Scores of the last stage, nats per note of a pretraining before it, and what all cost."""
    evaluation = read_json(stages[-1] / "evaluation.json")
    costs = [read_json(stage / "cost.json") for stage in stages]
    metrics = read_json(stages[-1] / "metrics.json")
    masked = [read_json(stage / "evaluation.json").get("masked") for stage in stages[:-1]]
    return {
        "labels": {
            label: {level: _kept(scores) for level, scores in levels.items()}
            for label, levels in evaluation.items()
        },
        "best": metrics["best"],
        "steps": metrics["steps"],
        "seconds": [c["seconds"] for c in costs],
        "fit_seconds": [c["fit_seconds"] for c in costs],
        "phrases": [c["train_phrases"] for c in costs],
        "tokens": [c["train_tokens"] for c in costs],
        "parameters": costs[-1]["parameters"],
        "nats_per_note": [m["nats_per_note"] for m in masked if m],
    }


def _kept(scores: Mapping[str, Any]) -> dict[str, Any]:
    found = {k: scores[k] for k in KEPT if k in scores}
    for part in ("baselines", "components"):
        if part in found:
            found[part] = {
                name: None if of is None else {k: of[k] for k in KEPT if k in of}
                for name, of in found[part].items()
            }
    if found.get("within_source"):
        found["within_source"] = _kept(found["within_source"])
    return found


def spread(values: Sequence[float]) -> str:
    """Mean and 95 % t interval over seeds."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.3f}"
    half = float(stdtrit(len(values) - 1, 0.975) * sem(values))
    return f"{mean:.3f} ± {half:.3f}"


def table(results: Mapping[str, Any]) -> str:
    """The results as Markdown, with every baseline beside the configurations."""
    rows: list[list[str]] = []
    baselines: dict[tuple[str, str], list[str]] = {}
    for name, of in results["configurations"].items():
        for label in of["runs"][0]["labels"]:
            songs = [run["labels"][label]["song"] for run in of["runs"]]
            phrases = [run["labels"][label]["phrase"] for run in of["runs"]]
            differences = of["versus"][label]
            rows.append(
                [
                    name, label, str(len(songs)),
                    spread([s["macro_f1"] for s in songs]),
                    _ahead(songs[0], differences[MODEL], "overall"),
                    spread([s["accuracy"] for s in songs]),
                    _within(songs, None),
                    _ahead(songs[0]["within_source"], differences[MODEL], "within_source"),
                    spread([s["calibrated"]["nll"] for s in songs]),
                    spread([s["macro_f1"] for s in phrases]),
                    _alone(songs),
                    _ahead(songs[0], differences.get(ENCODER), "overall"),
                    f"{np.mean([run['nats_per_note'] for run in of['runs']]):.3f}"
                    if all(run["nats_per_note"] for run in of["runs"]) else "–",
                    f"{np.mean([sum(r['tokens']) / sum(r['phrases']) for r in of['runs']]):,.0f}",
                    f"{np.mean([sum(r['phrases']) for r in of['runs']]):,.0f}",
                    f"{np.mean([sum(r['seconds']) for r in of['runs']]) / 60:.1f}",
                ]
            )  # fmt: skip
            for other, scores in songs[0]["baselines"].items():
                if scores is not None:
                    baselines[label, other] = [
                        other, label, "", f"{scores['macro_f1']:.3f}", "",
                        f"{scores['accuracy']:.3f}", _within(songs, other),
                        *[""] * (len(rows[0]) - 7),
                    ]  # fmt: skip
    header = ["configuration", "label", "seeds", "song macro-F1", "minus best baseline",
              "song accuracy", "within source F1", "minus best baseline within", "song NLL",
              "phrase macro-F1", "encoder alone", "encoder minus best baseline", "nats per note",
              "tokens a phrase", "phrases seen", "minutes in all"]  # fmt: skip
    return markdown_table(header, [*rows, *baselines.values()], n_left=2)


def _ahead(
    scores: Mapping[str, Any] | None, differences: Mapping[str, Any] | None, where: str
) -> str:
    """The baseline that is best there, and the interval of the difference to it."""
    of = {} if scores is None else scores["baselines"]
    known = {name: b["macro_f1"] for name, b in of.items() if b is not None}
    if not known or differences is None:
        return "–"
    best = max(known, key=lambda name: known[name])
    low, high = differences[best][where]
    return f"{best} [{low:+.3f}, {high:+.3f}]"


def _within(songs: Sequence[Mapping[str, Any]], baseline: str | None) -> str:
    found = [s.get("within_source") for s in songs]
    if any(w is None for w in found):
        return "–"
    if baseline is None:
        return spread([w["macro_f1"] for w in found])
    theirs = found[0]["baselines"].get(baseline)
    return "–" if theirs is None else f"{theirs['macro_f1']:.3f}"


def _alone(songs: Sequence[Mapping[str, Any]]) -> str:
    """Song macro-F1 of the encoder by itself, where a blend was measured."""
    parts = [s.get("components", {}).get("encoder") for s in songs]
    if any(p is None for p in parts):
        return "–"
    return spread([p["macro_f1"] for p in parts])


if __name__ == "__main__":
    main()
