"""Markdown tables of the study from ``results/``.

Run from anywhere: ``python experiments/03_conditional_generation/table.py``. With runs' folders as
arguments it first keeps what it needs of them (``results/runs.json``), with ``--judgement`` a
``judgement.json`` (``results/<name>.json``)::

    python experiments/03_conditional_generation/table.py runs/transformer_or_lstm/*
    python experiments/03_conditional_generation/table.py --judgement twelve JUDGEMENT_JSON
"""

import argparse
import json
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

import yaml
from scipy.special import stdtrit

from midigenre.corpora.twelve import REAL
from midigenre.files import read_json, write_json

RESULTS = Path(__file__).parent / "results"
SAMPLES = ("notes", "bars")


def keep_runs(folders):
    """What the tables need of trained runs."""
    runs = []
    for folder in sorted(map(Path, folders)):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        scores = read_json(folder / "evaluation.json")["tokens"]
        scores.pop("by_class")
        runs.append(
            {
                "corpus": config["corpus"]["_target_"].rsplit(".", 1)[1].lower(),
                "model": config["model"]["name"],
                "lr": config["optim"]["lr"] or config["model"]["lr"],
                "seed": config["seed"],
                "tokens": scores,
                "cost": read_json(folder / "cost.json"),
                "steps": read_json(folder / "metrics.json")["steps"],
            }
        )
    write_json(RESULTS / "runs.json", runs)


def keep_judgement(name, path):
    """A judgement without what it says of single pieces."""
    report = read_json(Path(path))
    for part in ("generated", "held_out"):
        for kind in SAMPLES:
            report["novelty"][part][kind].pop("samples")
    write_json(RESULTS / f"{name}.json", report)


def table(header, rows, n_left=1):
    lines = [header, ["---"] * n_left + ["---:"] * (len(header) - n_left), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def over_seeds(values, digits=3):
    """Mean and 95 % t interval over the seeds."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    half = stdtrit(len(values) - 1, 0.975) * stdev(values) / sqrt(len(values))
    return f"{mean(values):.{digits}f} ± {half:.{digits}f}"


def training_tables(runs):
    for corpus in sorted({run["corpus"] for run in runs}):
        rows = []
        kinds = sorted({(r["model"], r["steps"]) for r in runs if r["corpus"] == corpus})
        for kind in reversed(kinds):
            of = [r for r in runs if (r["corpus"], r["model"], r["steps"]) == (corpus, *kind)]
            scores = [run["tokens"] for run in of]
            rows.append(
                [
                    kind[0],
                    kind[1],
                    f"{of[0]['cost']['parameters']:,}",
                    over_seeds([run["cost"]["fit_seconds"] / 60 for run in of], 1),
                    f"{mean(run['cost']['train_tokens'] for run in of) / 1e6:.1f} M",
                    over_seeds([s["nats_per_note"] for s in scores]),
                    over_seeds([s["loss"] for s in scores]),
                    over_seeds([s["accuracy"] for s in scores]),
                    over_seeds([s["batch_mean_loss"] for s in scores]),
                    over_seeds([s["without_condition"]["nats_per_note"] for s in scores]),
                ]
            )
        header = [
            "model", "updates", "weights", "minutes", "steps of music seen", "nats per note",
            "nats per step", "token accuracy", "batch mean", "condition hidden: nats per note",
        ]  # fmt: skip
        print(f"\n**{corpus}**, {len(of)} seeds\n\n{table(header, rows)}")
        paired = {}
        for run in runs:
            if run["corpus"] == corpus:
                kind = (run["model"], run["steps"])
                paired.setdefault(run["seed"], {})[kind] = run["tokens"]["nats_per_note"]
        for kind in kinds[:-1]:
            both = [s for s in paired.values() if kind in s and kinds[-1] in s]
            gaps = [s[kind] - s[kinds[-1]] for s in both]
            print(f"\n{' '.join(map(str, kind))} minus {kinds[-1][0]}: {over_seeds(gaps)}")


def judgement_tables(name, report):
    print(f"\n**{name}**: {report['n_pieces']} pieces, {report['n_real']} real excerpts")
    for label, found in report["control"].items():
        parts = ("generated", "real", "shuffled")
        rows = [[c, *(f"{found[p]['recall'][c]:.0%}" for p in parts)] for c in found["classes"]]
        rows.append(
            ["**all**"]
            + [f"{found[p]['accuracy']:.3f} ({found[p]['ci95'][0]:.3f}–{found[p]['ci95'][1]:.3f})"
               for p in parts]
        )  # fmt: skip
        if set(REAL) <= set(found["classes"]):
            seven = [mean(found[p]["recall"][c] for c in REAL) for p in parts]
            rows.append(["**seven real**", *(f"{value:.3f}" for value in seven)])
        print("\n" + table([label, "generated", "real (ceiling)", "shuffled"], rows))
        ceiling = found["of_ceiling"]
        low, high = ceiling["ci95"]
        print(f"\nof the ceiling: {ceiling['value']:.3f} ({low:.3f}–{high:.3f}), chance "
              f"{found['chance']:.3f}")  # fmt: skip
        if set(REAL) <= set(found["classes"]):
            print(f"seven real, of the ceiling: {seven[0] / seven[1]:.3f}")
    if "reason" not in report["distance"]:
        rows = [
            [key.replace("_", " "), f"{d['overlap']['value']:.3f}",
             f"{d['overlap']['matched']['mean']:.3f}",
             f"{d['overlap']['floor']['low']:.3f}–{d['overlap']['floor']['high']:.3f}"]
            for key, d in report["distance"].items() if "overlap" in d
        ]  # fmt: skip
        print("\n" + table(["measure", "overlap", "matched", "real against real"], rows))
    print(f"\nFréchet: {json.dumps(report['frechet'])}")
    form, novelty = report["structure"], report["novelty"]
    rows = [["ends on the tonic", *(f"{form[p]['tonic']['share']:.0%}" for p in form)]]
    for lag in (1, 2, 4, 8):
        alike = (form[p]["repetition"]["similarity"][lag - 1] for p in form)
        rows.append(
            [f"similarity at {lag} bars", *("–" if x is None else f"{x:.3f}" for x in alike)]
        )
    sides = ("generated", "held_out")
    for kind in SAMPLES:
        rows.append([f"longest shared run, {kind}: median, 90 %, longest"])
        for side in sides:
            runs = novelty[side][kind]
            rows[-1].append(", ".join(f"{runs[q]:.0f}" for q in ("median", "p90", "max")))
    copied = (novelty[side]["copied"]["share"] for side in sides)
    rows.append(["more than 8 bars copied", *(f"{share:.1%}" for share in copied)])
    print("\n" + table(["", "generated", "real"], rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", help="runs to keep, or one judgement.json")
    parser.add_argument("--judgement", metavar="NAME", help="keep a judgement under this name")
    args = parser.parse_args()
    if args.judgement:
        (path,) = args.folders
        keep_judgement(args.judgement, path)
    elif args.folders:
        keep_runs(args.folders)
    if (RESULTS / "runs.json").is_file():
        training_tables(read_json(RESULTS / "runs.json"))
    for path in sorted(RESULTS.glob("*.json")):
        if path.stem != "runs":
            judgement_tables(path.stem, read_json(path))


if __name__ == "__main__":
    main()
