"""The Markdown tables of ``results/*.json``, written into README.md when run as a script.

Medians with the smallest and the largest in brackets; a ratio is taken within each repeat, whose
sides ran one after the other.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "speed"))
from table import spread, table, write  # noqa: E402

AIMS = {
    "full recomputation": {"1": 15, "16": 70},
    "full recomputation, nn.Linear": {"1": 15, "16": 70},
    "Hugging Face": {"1": 1.0, "16": 1.3},
}
OURS = ("ours", "ours, sampler with grammar", "ours, int8")

Results = Mapping[str, Mapping[str, Any]]


def markdown(results: Results) -> str:
    """All tables; ``results`` holds what each allocator setting's child process wrote."""
    parts = [about(results), rates(results), ratios(results), quality(results)]
    return "\n\n".join(parts)


def about(results: Results) -> str:
    first = next(iter(results.values()))
    known = first["environment"]
    versions = ", ".join(f"{k} {v}" for k, v in known["versions"].items() if v)
    sizes = ", ".join(f"{k} {v:,}" for k, v in first["shape"].items())
    weights = {"ours": first["parameters"]["ours"]}
    caches = {}
    for allocator, result in results.items():
        for rows, one in result["batches"].items():
            if "cache" in one:
                weights["Hugging Face"] = one["parameters"]
                caches[f"{rows} ({allocator})"] = one["cache"]
    counted = ", ".join(f"{name} {n / 1e6:.1f} M" for name, n in weights.items())
    text = (
        f"{known['cpu']}; {known['cpu_capability']}, {known['threads']} threads; {versions}. "
        f"{first['n_tokens']} tokens a row; {sizes}; parameters: {counted}. Largest difference of "
        f"a logit between the cached loop and the full pass: "
        f"{first['largest_logit_difference']:.1e}."
    )
    if caches:
        text += " Hugging Face's faster cache: " + ", ".join(
            f"batch {where} {cache}" for where, cache in caches.items()
        )
        text += "."
    return text


def rates(results: Results) -> str:
    """Tokens a second of all rows together."""
    first = next(iter(results.values()))["batches"]
    head = [f"batch {rows}, {name}" for rows in first for name in results]
    rows = [["tokens/s", *head]]
    for side in next(iter(first.values()))["seconds"]:
        cells = [
            spread(int(n) * result["n_tokens"] / s for s in result["batches"][n]["seconds"][side])
            for n in first
            for result in results.values()
        ]
        rows.append([side, *cells])
    return table(rows)


def ratios(results: Results) -> str:
    """How many times as fast ours is, beside the aim."""
    rows = [["so many times as fast as", "batch", "allocator", *OURS, "aim"]]
    for side, aims in AIMS.items():
        for n in next(iter(results.values()))["batches"]:
            for allocator, result in results.items():
                seconds = result["batches"][n]["seconds"]
                if side not in seconds:
                    continue
                cells = [
                    spread(a / b for a, b in zip(seconds[side], seconds[ours], strict=True))
                    for ours in OURS
                ]
                rows.append([side, n, allocator, *cells, f"{aims.get(n, '')}"])
    return table(rows)


def quality(results: Results) -> str:
    """What int8 costs on test windows."""
    found = next((r["int8_quality"] for r in results.values() if r["int8_quality"]), None)
    if found is None:
        return "Quality of int8: not measured; it needs a trained run (`--run RUN`)."
    rows = [["weights", "nats per note", "nats per step", "token accuracy"]]
    scores = found["scores"]
    for name, one in scores.items():
        rows.append(
            [name, f"{one['nats_per_note']:.4f}", f"{one['loss']:.4f}", f"{one['accuracy']:.4f}"]
        )
    loss = scores["int8"]["nats_per_note"] / scores["float32"]["nats_per_note"] - 1
    return (
        f"Quality of int8: `{found['run']}` (model {found['model']}), {found['n_windows']} test "
        f"windows of {found['corpus']}, {found['n_steps']:,} steps; nats per note {loss:+.2%}."
        f"\n\n{table(rows)}"
    )


if __name__ == "__main__":
    stored = {
        name: json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("default", "reuse")
    }
    write(HERE / "README.md", markdown(stored))
