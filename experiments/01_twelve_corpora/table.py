"""Markdown tables of the study from ``results/<tokenizer>.json`` (each an ``evaluation.json``).

The last two are from the runs' ``predictions.csv``, without the log-probabilities.

Run from anywhere: ``python experiments/01_twelve_corpora/table.py``.
"""

import json
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

from scipy.special import stdtrit

from midigenre.corpora.twelve import REAL, SYNTHESISED
from midigenre.evaluation.bootstrap import paired_bootstrap
from midigenre.files import read_csv

RESULTS = Path(__file__).parent / "results"
TOKENIZERS = ("remi", "cp", "octuple")
BASELINES = ("majority", "metadata", "ngram_lr", "hist_gb")
SPLITS = range(5)
TEST_TO_TRAIN = 0.1 / 0.8  # songs


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
    print()
    header = ["seven real, macro-F1", "level", *map(str, SPLITS), "mean",
              "model minus baseline (95%)", "splits at or above"]  # fmt: skip
    print(table(header, list(five_splits()), n_left=2))


def both(scores):
    return [interval(scores, metric) for metric in ("accuracy", "macro_f1")]


def difference(found):
    low, high = found["ci95"]
    return f"{found['difference']:+.3f} ({low:+.3f} to {high:+.3f})"


def seven():
    """The paired bootstrap over songs whose truth is one of the seven real corpora."""
    for name in TOKENIZERS:
        for level in ("phrase", "song"):
            for baseline, found in against_baselines(name, level).items():
                yield [name, level, baseline, f"{found['first']:.3f}", f"{found['second']:.3f}",
                       difference(found), f"{found['p']:.3f}"]  # fmt: skip


def five_splits():
    """Every split's scores, and the mean difference with an interval over the splits.

    Training sets of two splits share most songs, so a plain t-interval is too narrow: the variance
    is scaled by ``1 / n + n_test / n_train`` (Nadeau and Bengio 2003, "Inference for the
    Generalization Error").
    """
    for level in ("phrase", "song"):
        found = [against_baselines(f"split-{n}", level) for n in SPLITS]
        model = [one["hist_gb"]["first"] for one in found]
        yield ["model", level, *(f"{value:.3f}" for value in model), f"{mean(model):.3f}", "", ""]
        for baseline in BASELINES:
            scores = [one[baseline]["second"] for one in found]
            gains = [one[baseline]["difference"] for one in found]
            half = stdtrit(len(gains) - 1, 0.975) * stdev(gains)
            half *= sqrt(1 / len(gains) + TEST_TO_TRAIN)
            low, high = mean(gains) - half, mean(gains) + half
            yield [baseline, level, *(f"{value:.3f}" for value in scores), f"{mean(scores):.3f}",
                   f"{mean(gains):+.3f} ({low:+.3f} to {high:+.3f})",
                   f"{sum(gain >= 0 for gain in gains)} of {len(gains)}"]  # fmt: skip


def against_baselines(name, level):
    """Baseline -> paired bootstrap of macro-F1 in ``results/<name>-predictions*.csv``, if there."""
    path = RESULTS / f"{name}-predictions{'_songs' if level == 'song' else ''}.csv"
    if not path.is_file():
        return {}
    rows = read_csv(path)
    column = {key: [row[key] for row in rows] for key in rows[0]}
    return {
        baseline: paired_bootstrap(
            column["genre"], column["genre_model"], column[f"genre_{baseline}"],
            column["song_id"], REAL,
        )["macro_f1"]
        for baseline in BASELINES
    }  # fmt: skip


if __name__ == "__main__":
    main()
