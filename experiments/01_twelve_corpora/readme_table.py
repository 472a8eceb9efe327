"""Rewrites the README's table from a run of ``make train``.

``python experiments/01_twelve_corpora/readme_table.py runs/train/<when>``
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from midigenre.corpora.twelve import REAL, SYNTHESISED

README = Path(__file__).parents[2] / "README.md"
BEGIN = "<!-- table: .venv/bin/python experiments/01_twelve_corpora/readme_table.py RUN -->\n"
END = "<!-- end -->"
BASELINES = {
    "metadata": "metadata only (`metadata`)",
    "ngram_lr": "n-grams, logistic regression (`ngram_lr`)",
    "hist_gb": "histogram, gradient boosting (`hist_gb`)",
}


def interval(of: dict[str, Any], metric: str = "macro_f1") -> str:
    low, high = of["ci95"][metric]
    return f"{of[metric]:.3f} ({low:.3f}–{high:.3f})"


def table(evaluation: dict[str, Any]) -> str:
    """F1 of each class, then macro-F1 of the model and of the baselines, by phrase and by song."""
    phrase, song = evaluation["genre"]["phrase"], evaluation["genre"]["song"]
    rows = [
        "| genre | test songs (phrases) | F1, phrase | F1, song |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name in (*REAL, *SYNTHESISED):
        by_phrase, by_song = (level["per_class"][name] for level in (phrase, song))
        n = f"{by_song['support']} ({by_phrase['support']})"
        rows.append(f"| {name} | {n} | {by_phrase['f1']:.3f} | {by_song['f1']:.3f} |")
    real = (mean(level["per_class"][name]["f1"] for name in REAL) for level in (phrase, song))
    rows.append("| **seven real, macro-F1** | | " + " | ".join(f"**{x:.3f}**" for x in real) + " |")
    both = f"**{interval(phrase)}** | **{interval(song)}**"
    rows.append(f"| **all twelve, macro-F1 (95%)** | | {both} |")
    for name, title in BASELINES.items():
        scores = [level["baselines"][name] for level in (phrase, song)]
        rows.append(f"| {title} | | {interval(scores[0])} | {interval(scores[1])} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    evaluation = json.loads((parser.parse_args().run / "evaluation.json").read_text())
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    README.write_text(f"{before}{BEGIN}{table(evaluation)}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
