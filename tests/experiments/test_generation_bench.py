"""``make bench-generate`` runs, and its tables are what its README says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "experiments" / "02_generation_speed"
OURS = ["ours", "ours, sampler with grammar", "ours, int8"]
FULL = ["full recomputation", "full recomputation, nn.Linear"]


@pytest.mark.slow
def test_quick_run_leaves_results_and_tables(tmp_path: Path) -> None:
    """With what is installed: Hugging Face only where the bench extra is."""
    has_extra = find_spec("transformers") is not None
    flags = ["--quick", "--repeats", "1", "--threads", "1", "--allocators", "reuse"]
    flags += [] if has_extra else ["--ours-only"]
    done = subprocess.run(
        [sys.executable, str(BENCH / "bench.py"), *flags, "--out", str(tmp_path)],
        capture_output=True, text=True, check=False, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Quality of int8: not measured" in done.stdout
    assert "| full recomputation | 1 | reuse |" in done.stdout
    results = {p.stem: json.loads(p.read_text()) for p in tmp_path.glob("*.json")}
    assert list(results) == ["reuse"]
    for result in results.values():
        assert result["environment"]["allocator"]["MALLOC_MMAP_MAX_"] == "0"
        assert result["environment"]["threads"] == 1
        assert 0 < result["largest_logit_difference"] < 1e-4
        for one in result["batches"].values():
            assert list(one["seconds"]) == OURS + FULL + ["Hugging Face"] * has_extra
            assert all(len(s) == 1 and s[0] > 0 for s in one["seconds"].values())


def test_tables_take_ratios_within_a_repeat() -> None:
    scores = {"nats_per_note": 2.0, "loss": 1.0, "accuracy": 0.5}
    one = {
        "seconds": {"ours": [1.0, 2.0, 4.0], "ours, sampler with grammar": [2.0, 2.0, 4.0],
                    "ours, int8": [0.5] * 3, "full recomputation": [20.0, 30.0, 100.0],
                    "Hugging Face": [1.0, 4.0, 12.0]},
        "parameters": 2e6, "cache": "static",
    }  # fmt: skip
    result = {
        "environment": {"cpu": "c", "cpu_capability": "x", "threads": 2, "versions": {"torch": 1}},
        "shape": {"d_model": 8}, "n_tokens": 100, "largest_logit_difference": 1e-6,
        "parameters": {"ours": 1e6}, "batches": {"16": one},
        "int8_quality": {"run": "r", "model": "tiny", "corpus": "toy", "n_windows": 3,
                         "n_steps": 9, "scores": {"float32": scores,
                                                  "int8": scores | {"nats_per_note": 2.01}}},
    }  # fmt: skip
    script = (
        f"import sys, json; sys.path.insert(0, {str(BENCH)!r}); from rates import markdown; "
        "print(markdown(json.load(sys.stdin)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps({"default": result}),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # Ratios 20, 15, 25 and 1, 2, 3; not the quotients of the medians, 15 and 2.
    assert (
        "| full recomputation | 16 | default | 20 (15–25) | 15 (10–25) | 60 (40–200) | 70 |"
        in done.stdout
    )
    assert "| Hugging Face | 16 | default | 2 (1–3) |" in done.stdout
    assert "| ours | 800 (400–1,600) |" in done.stdout
    assert "nats per note +0.50%" in done.stdout
    assert "| int8 | 2.0100 | 1.0000 | 0.5000 |" in done.stdout
