"""Markdown tables of the study from ``results/<tokenizer>.json`` (each an ``evaluation.json``).

The last one is from the runs' ``predictions.csv``, without the log-probabilities.

Run from anywhere: ``python experiments/01_twelve_corpora/table.py``.
"""

import json
from pathlib import Path
from statistics import mean

from midigenre.corpora.twelve import REAL, SYNTHESISED
from midigenre.evaluation.bootstrap import paired_bootstrap
from midigenre.files import read_csv

RESULTS = Path(__file__).parent / "results"
TOKENIZERS = ("remi", "cp", "octuple")


def interval(scores, metric):
    low, high = scores["ci95"][metric]
    return f"{scores[metric]:.3f} ({low:.3f}–{high:.3f})"


def table(header, rows, n_left=1):
    lines = [header, ["---"] * n_left + ["---:"] * (len(header) - n_left), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main():
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
            for level in ("phrase", "song")
        ]
        rows.append([name, f"{support[0]} ({support[1]})", *f1])
    for title, names in (("**seven real, macro-F1**", REAL), ("**all twelve, macro-F1**", None)):
        cells = []
        for run in runs.values():
            for level in ("phrase", "song"):
                scores = run[level]
                value = (
                    scores["macro_f1"]
                    if names is None
                    else mean(scores["per_class"][n]["f1"] for n in names)
                )
                cells.append(f"**{value:.3f}**")
        rows.append([title, "", *cells])
    header = ["F1", "test songs (phrases)"]
    header += [f"{name}, {level}" for name in runs for level in ("phrase", "song")]
    print(table(header, rows))
    print()
    rows = []
    for name, run in runs.items():
        for level in ("phrase", "song"):
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


def both(scores):
    return [interval(scores, metric) for metric in ("accuracy", "macro_f1")]


def difference(found):
    low, high = found["ci95"]
    return f"{found['difference']:+.3f} ({low:+.3f} to {high:+.3f})"


def seven():
    """The paired bootstrap over songs whose truth is one of the seven real corpora."""
    for name in TOKENIZERS:
        for level, suffix in (("phrase", ""), ("song", "_songs")):
            path = RESULTS / f"{name}-predictions{suffix}.csv"
            if not path.is_file():
                continue
            rows = read_csv(path)
            column = {key: [row[key] for row in rows] for key in rows[0]}
            for baseline in ("majority", "metadata", "ngram_lr", "hist_gb"):
                found = paired_bootstrap(
                    column["genre"], column["genre_model"], column[f"genre_{baseline}"],
                    column["song_id"], REAL,
                )["macro_f1"]  # fmt: skip
                yield [name, level, baseline, f"{found['first']:.3f}", f"{found['second']:.3f}",
                       difference(found), f"{found['p']:.3f}"]  # fmt: skip


if __name__ == "__main__":
    main()
