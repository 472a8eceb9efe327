"""Markdown tables of the study from ``results/<tokenizer>.json`` (each an ``evaluation.json``).

The last two are from the runs' ``predictions.csv``, without the log-probabilities.

    python experiments/01_twelve_corpora/table.py
    python experiments/01_twelve_corpora/table.py --keep remi RUN --keep folds RUN
"""

import argparse
import json
from pathlib import Path
from shutil import copyfile
from statistics import mean

from midigenre.corpora.twelve import REAL, SYNTHESISED
from midigenre.evaluation.bootstrap import paired_bootstrap
from midigenre.files import read_csv, write_csv

RESULTS = Path(__file__).parent / "results"
TOKENIZERS = ("remi", "cp", "octuple")
BASELINES = ("majority", "metadata", "ngram_lr", "hist_gb")
STRONG = ("ngram_lr", "hist_gb")
LEVELS = ("phrase", "song")


def interval(scores, metric):
    low, high = scores["ci95"][metric]
    return f"{scores[metric]:.3f} ({low:.3f}–{high:.3f})"


def table(header, rows, n_left=1):
    lines = [header, ["---"] * n_left + ["---:"] * (len(header) - n_left), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--keep", nargs=2, action="append", default=[], metavar=("NAME", "RUN"),
        help="copy this run into results/ as remi, cp, octuple, folds or folds_cp",
    )  # fmt: skip
    for name, run in parser.parse_args().keep:
        keep(name, Path(run))
    runs = {
        name: json.loads((RESULTS / f"{name}.json").read_text())["genre"]
        for name in TOKENIZERS
        if (RESULTS / f"{name}.json").is_file()
    }
    first = next(iter(runs.values()))
    rows = []
    for name in (*REAL, *SYNTHESISED):
        support = [first[level]["per_class"][name]["support"] for level in ("song", "phrase")]
        f1 = [
            f"{run[level]['per_class'][name]['f1']:.3f}"
            for run in runs.values()
            for level in LEVELS
        ]
        rows.append([name, f"{support[0]} ({support[1]})", *f1])
    for title, names in (("**seven real, macro-F1**", REAL), ("**all twelve, macro-F1**", None)):
        cells = []
        for run in runs.values():
            for level in LEVELS:
                scores = run[level]
                value = (
                    scores["macro_f1"]
                    if names is None
                    else mean(scores["per_class"][n]["f1"] for n in names)
                )
                cells.append(f"**{value:.3f}**")
        rows.append([title, "", *cells])
    header = ["F1", "test songs (phrases)"]
    header += [f"{name}, {level}" for name in runs for level in LEVELS]
    print(table(header, rows))
    print()
    rows = []
    for name, run in runs.items():
        for level in LEVELS:
            scores = run[level]
            rows.append([name, level, "model", *both(scores), f"{scores['ece']:.3f}", ""])
            for baseline, other in scores["baselines"].items():
                against = other["versus_model"]["macro_f1"]
                rows.append([name, level, baseline, *both(other), "", difference(against)])
    header = ["tokenizer", "level", "by", "accuracy (95%)", "macro-F1 (95%)", "ECE",
              "model minus baseline, macro-F1 (95%)"]  # fmt: skip
    print(table(header, rows, n_left=3))
    print()
    print(table(["seven real", "level", "baseline", "model", "baseline's macro-F1",
                 "model minus baseline (95%)", "p"], list(seven()), n_left=3))  # fmt: skip
    print()
    header = ["five folds, macro-F1", "by", "seven real", "all twelve",
              "seven real, model minus it (95%)", "all twelve, model minus it (95%)"]  # fmt: skip
    print(table(header, list(five_folds()), n_left=2))


def both(scores):
    return [interval(scores, metric) for metric in ("accuracy", "macro_f1")]


def difference(found):
    low, high = found["ci95"]
    return f"{found['difference']:+.3f} ({low:+.3f} to {high:+.3f})"


def seven():
    """One run of each tokenizer: the songs whose truth is one of the seven real corpora."""
    for name in TOKENIZERS:
        for level in LEVELS:
            for baseline, found in against_baselines(name, level, REAL).items():
                yield [name, level, baseline, f"{found['first']:.3f}", f"{found['second']:.3f}",
                       difference(found), f"{found['p']:.3f}"]  # fmt: skip


def five_folds():
    """Every song tested once: the songs of the seven real corpora, then all."""
    for level in LEVELS:
        found = [against_baselines("folds", level, classes, "folds_cp") for classes in (REAL, None)]
        firsts = [f"{next(iter(of.values()))['first']:.3f}" for of in found if of]
        if firsts:
            yield [level, "model", *firsts, "", ""]
        for name in found[0]:
            both_of = [of[name] for of in found]
            yield [level, name, *(f"{of['second']:.3f}" for of in both_of),
                   *map(difference, both_of)]  # fmt: skip


def against_baselines(name, level, classes, of_cp=None):
    """Baseline -> paired bootstrap of macro-F1 in ``results/<name>-predictions*.csv``, if there.

    Pieces are drawn, not songs: the movements of a work are no independent songs. ``of_cp`` has
    the same phrases' baselines on CP.
    """
    end = "_songs" if level == "song" else ""
    path = RESULTS / f"{name}-predictions{end}.csv"
    if not path.is_file():
        return {}
    rows = read_csv(path)
    if of_cp is not None:
        theirs = {place(row): row for row in read_csv(RESULTS / f"{of_cp}-predictions{end}.csv")}
        for row in rows:
            row |= {f"genre_{n} on CP": theirs[place(row)][f"genre_{n}"] for n in STRONG}
    column = {key: [row[key] for row in rows] for key in rows[0]}
    return {
        baseline: paired_bootstrap(
            column["genre"], column["genre_model"], column[f"genre_{baseline}"], column["piece"],
            classes,
        )["macro_f1"]
        for baseline in (*BASELINES, *(f"{n} on CP" for n in STRONG))
        if f"genre_{baseline}" in column
    }  # fmt: skip


def place(row):
    return row["song_id"], row.get("first_bar")


def keep(name, run):
    """Copies a run's scores and predictions into ``results/``, without log-probabilities."""
    if name in TOKENIZERS:
        copyfile(run / "evaluation.json", RESULTS / f"{name}.json")
    wanted = ["song_id", "first_bar"]
    if name == "folds_cp":
        wanted += [f"genre_{n}" for n in STRONG]
    else:
        wanted += ["piece", "genre", "genre_model", *(f"genre_{n}" for n in BASELINES)]
    for level in ("", "_songs"):
        rows = read_csv(run / f"predictions{level}.csv")
        columns = [column for column in wanted if column in rows[0]]
        kept = [{column: row[column] for column in columns} for row in rows]
        write_csv(RESULTS / f"{name}-predictions{level}.csv", kept, columns)


if __name__ == "__main__":
    main()
