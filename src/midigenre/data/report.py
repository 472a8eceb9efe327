"""Counts a prepared corpus: songs and phrases per class and split, phrase lengths, cuts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from midigenre.data.phrases import PhraseReader, consecutive
from midigenre.data.shards import ShardSet
from midigenre.data.split import SPLITS

PERCENTILES = (1, 25, 50, 75, 90, 99, 100)


def phrase_report(shards: ShardSet, phrase_bars: int, max_tokens: int) -> dict[str, Any]:
    """Songs and phrases of each class and split, and how long the phrases are.

    Lengths are counted before ``max_tokens`` cuts them. Where phrases are not slices of the song's
    tokens they are estimated from the number of notes (``exact`` is then false).
    """
    reader = PhraseReader(shards, shards.tokens)
    labels = shards.label_indices()
    classes: dict[str, dict[str, dict[str, dict[str, int]]]] = {
        label: {name: {} for name in names} for label, names in shards.labels.classes.items()
    }
    totals: dict[str, dict[str, int]] = {}
    lengths = []
    for split in SPLITS:
        rows = shards.rows(split)
        phrases = consecutive(shards, rows, phrase_bars)
        lengths.append(reader.lengths(phrases))
        totals[split] = {"songs": len(rows), "phrases": len(phrases)}
        for label, names in shards.labels.classes.items():
            for i, name in enumerate(names):
                classes[label][name][split] = {
                    "songs": int((labels[label][rows] == i).sum()),
                    "phrases": int((labels[label][phrases.song] == i).sum()),
                }
    steps = np.concatenate(lengths)
    cut = int((steps > max_tokens).sum())
    return {
        "phrase_bars": phrase_bars,
        "max_tokens": max_tokens,
        "splits": totals,
        "classes": classes,
        "phrase_tokens": {
            "tokenizer": shards.tokens.name,
            "exact": shards.tokens.bars != "none",
            "mean": round(float(steps.mean()), 1) if len(steps) else None,
            "percentiles": {
                str(p): int(np.percentile(steps, p)) for p in PERCENTILES if len(steps)
            },
        },
        "cut_by_max_tokens": {
            "phrases": cut,
            "share": round(cut / len(steps), 4) if len(steps) else None,
        },
    }


def print_report(report: dict[str, Any], console: Console) -> None:
    """Shows a report as tables."""
    for label, classes in report["classes"].items():
        table = Table(title=f"{label}: songs (phrases)", title_justify="left")
        table.add_column(label)
        for split in SPLITS:
            table.add_column(split, justify="right")
        for name, by_split in classes.items():
            table.add_row(
                escape(name),
                *(f"{by_split[s]['songs']:,} ({by_split[s]['phrases']:,})" for s in SPLITS),
            )
        table.add_section()
        table.add_row(
            "all",
            *(
                f"{report['splits'][s]['songs']:,} ({report['splits'][s]['phrases']:,})"
                for s in SPLITS
            ),
        )
        console.print(table)
    tokens = report["phrase_tokens"]
    percentiles = "  ".join(f"p{p} {n}" for p, n in tokens["percentiles"].items())
    about = "" if tokens["exact"] else "about "
    console.print(
        f"{tokens['tokenizer']}: {about}{tokens['mean']} steps a phrase of "
        f"{report['phrase_bars']} bars ({percentiles})"
    )
    cut = report["cut_by_max_tokens"]
    share = 0.0 if cut["share"] is None else cut["share"]
    console.print(
        f"{cut['phrases']:,} phrases ({share:.1%}) are longer than data.max_tokens="
        f"{report['max_tokens']} and end at the last whole bar that fits"
    )
    refused = report.get("refused", {})
    if refused:
        reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(refused).most_common())
        console.print(f"refused: {reasons} (see refused.csv)")
    for text in report.get("warnings", ()):
        console.print(f"[yellow]warning:[/] {escape(text)}")
