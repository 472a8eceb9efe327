"""Markdown tables of the study from ``results/<tokenizer>.json`` (each an ``evaluation.json``).

Run from anywhere: ``python experiments/01_twelve_corpora/table.py``.
"""

import json
from pathlib import Path
from statistics import mean

from midigenre.corpora.twelve import REAL, SYNTHESISED

RESULTS = Path(__file__).parent / "results"
TOKENIZERS = ("remi", "cp", "octuple")


def interval(scores, metric):
    low, high = scores["ci95"][metric]
    return f"{scores[metric]:.3f} ({low:.3f}–{high:.3f})"


def table(header, rows):
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
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
    rows = [
        [name, level, interval(run[level], "accuracy"), interval(run[level], "macro_f1"),
         f"{run[level]['ece']:.3f}", f"{run[level]['baselines']['majority']['macro_f1']:.3f}"]
        for name, run in runs.items()
        for level in ("phrase", "song")
    ]  # fmt: skip
    print(table(["tokenizer", "level", "accuracy (95%)", "macro-F1 (95%)", "ECE",
                 "majority's macro-F1"], rows))  # fmt: skip


if __name__ == "__main__":
    main()
