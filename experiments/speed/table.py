"""The Markdown tables of ``results/*.json``, written into README.md when run as a script.

Every number is the median over the repeats with the smallest and the largest in brackets. A ratio
is taken within each repeat, whose sides ran one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
AIMS = {  # DistilBERT's side -> least ratio by allocator
    "DistilBERT as shipped": {"default": 5, "reuse": 3},
    "DistilBERT, dropout 0": {"default": 2, "reuse": 2},
    "DistilBERT, dropout 0, buckets": {"default": 1, "reuse": 1},
}


def markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """All tables; ``results`` holds what each allocator setting's child process wrote."""
    parts = [environment(next(iter(results.values())))]
    for name, first in next(iter(results.values()))["sets"].items():
        lengths = first["lengths"]
        parts.append(
            f"**Set {name}**: {first['about']}; {first['n_phrases']} phrases in batches of "
            f"{first['batch_phrases']}, mean {sum(lengths) / len(lengths):.0f} tokens, median "
            f"{median(lengths):.0f}, longest {max(lengths)}."
        )
        parts.append(throughput(name, results))
    parts += [ratios(results), peaks(results), feeding(results)]
    return "\n\n".join(part for part in parts if part)


def environment(result: Mapping[str, Any]) -> str:
    known, shape = result["environment"], result["shape"]
    versions = ", ".join(f"{k} {v}" for k, v in known["versions"].items() if v)
    sizes = ", ".join(f"{k} {v}" for k, v in shape.items())
    return (
        f"{known['cpu']}; {known['cpu_capability']}, {known['threads']} thread; {versions}. "
        f"Model: {sizes}."
    )


def throughput(name: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """Real tokens/s of each side under each allocator setting."""
    sets = {allocator: result["sets"][name] for allocator, result in results.items()}
    rows = [["real tokens/s", "real tokens among all", *sets]]
    for side, share in next(iter(sets.values()))["real_token_share"].items():
        rates = [
            spread(one["n_tokens"] / seconds for seconds in one["seconds"][side])
            for one in sets.values()
        ]
        rows.append([side, f"{share:.0%}", *rates])
    return table(rows)


def ratios(results: Mapping[str, Mapping[str, Any]]) -> str:
    """How many times as fast as DistilBERT ours is, beside the aim."""
    rows = [["ours is so many times as fast as", "set", "allocator", "ours", "dropout 0", "aim"]]
    for side, aims in AIMS.items():
        for allocator, result in results.items():
            for name, one in result["sets"].items():
                if side not in one["seconds"]:
                    continue
                cells = [
                    spread(
                        theirs / mine
                        for theirs, mine in zip(
                            one["seconds"][side], one["seconds"][ours], strict=True
                        )
                    )
                    for ours in ("ours", "ours, dropout 0")
                ]
                rows.append([side, name, allocator, *cells, f"{aims[allocator]}"])
    return table(rows) if len(rows) > 1 else ""


def peaks(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Model FLOP/s beside the fastest float32 product of both libraries, same process."""
    rows = [["", "set", "allocator", "model GFLOP/s", "of MKL's peak", "of oneDNN's peak"]]
    for allocator, result in results.items():
        mkl, onednn = (max(p[k] for p in result["peak_gflops"]) for k in ("mkl", "onednn"))
        for name, one in result["sets"].items():
            for side in ("ours", "ours, dropout 0"):
                rate = median(one["model_flops"] / s / 1e9 for s in one["seconds"][side])
                cells = [f"{rate:.0f}", f"{rate / mkl:.0%} of {mkl:.0f}"]
                rows.append([side, name, allocator, *cells, f"{rate / onednn:.0%} of {onednn:.0f}"])
    return table(rows)


def feeding(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Loader, Lightning and random reading."""
    rows = [["beside the model", *results]]
    every = results.values()
    rows.append(["our loader, ms a batch", *(spread(r["loader_ms"]) for r in every)])
    over = [spread(a - b for a, b in zip(*r["lightning_ms"].values(), strict=True)) for r in every]
    rows.append(["Lightning over the bare loop, ms a step", *over])
    for way, what in (("", "one by one"), (" 32", "32 at once")):
        if not all("reading" in r for r in every):
            break
        rates = [r["reading"]["phrases_per_second"] for r in every]
        mine, theirs = "ours" + way, "datasets" + way
        rows.append([f"our shards, shuffled phrases/s, {what}", *(spread(r[mine]) for r in rates)])
        rows.append([f"HF datasets, the same, {what}", *(spread(r[theirs]) for r in rates)])
        times = [spread(a / b for a, b in zip(r[mine], r[theirs], strict=True)) for r in rates]
        rows.append(["so many times as fast (aim 10)", *times])
    return table(rows)


def spread(values: Iterable[float]) -> str:
    """Median and range."""
    values = list(values)
    return f"{number(median(values))} ({number(min(values))}–{number(max(values))})"


def number(value: float) -> str:
    """Three digits, whole numbers from 100 on."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *body))


def write(readme: Path, text: str) -> None:
    """Puts the tables between the two markers."""
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    found = ("default", "reuse")
    stored = {n: json.loads((HERE / "results" / f"{n}.json").read_text()) for n in found}
    write(HERE / "README.md", markdown(stored))
