"""``make bench`` runs, and its phrases, formulas and tables are what its README says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

SPEED = Path(__file__).resolve().parents[2] / "experiments" / "speed"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a test import the bench's modules as its scripts do."""
    monkeypatch.syspath_prepend(str(SPEED))


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SPEED / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )


@pytest.mark.slow
def test_quick_run_leaves_results_and_tables(tmp_path: Path) -> None:
    """With what is installed: DistilBERT and datasets only where the bench extra is."""
    has_extra = all(find_spec(name) for name in ("transformers", "datasets"))
    flags = ["--quick", "--repeats", "2"] + ([] if has_extra else ["--ours-only"])
    done = run("bench.py", *flags, "--out", tmp_path / "out", "--home", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "**Set a**" in done.stdout
    assert "| Lightning over the bare loop, ms a step |" in done.stdout
    results = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "out").glob("*.json")}
    assert sorted(results) == ["default", "reuse"]
    settings = results["reuse"]["environment"]["allocator"]
    assert settings["MALLOC_MMAP_MAX_"] == "0"
    for result in results.values():
        assert result["environment"]["threads"] == 1
        assert all(min(peak.values()) > 0 for peak in result["peak_gflops"])
        for one in result["sets"].values():
            assert len(one["lengths"]) == one["n_phrases"]
            assert sum(one["lengths"]) == one["n_tokens"]
            assert all(len(s) == 2 and min(s) > 0 for s in one["seconds"].values())
            assert len(one["seconds"]) == (5 if has_extra else 2)
    # The allocator changes the time, not the work.
    a, b = (r["sets"]["a"]["lengths"] for r in results.values())
    assert a == b


def test_bench_without_its_extra_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "none.py").write_text(
        "import sys, importlib.util as u\n"
        f"sys.path.insert(0, {str(SPEED)!r})\n"
        "u.find_spec = lambda name: None\n"
        "import bench\n"
        "bench.find_spec = u.find_spec\n"
        "sys.argv = ['bench.py']\n"
        "bench.main()\n"
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "none.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "bench: transformers, datasets not installed; run `make bench`, which installs it"
    )


def test_gpu_script_without_a_gpu_says_so_in_one_line() -> None:
    done = run("gpu.py")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("gpu: torch sees no CUDA device")
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("speed")
def test_full_band_lengths_follow_the_real_ones() -> None:
    """Of 3,669 full-band songs: mean 687, median 607, p90 1,254 tokens a phrase."""
    from phrase_sets import full_band

    phrases = full_band(8, 4)
    lengths = np.array(phrases.lengths)
    assert lengths.mean() == pytest.approx(687, rel=0.04)
    assert np.median(lengths) == pytest.approx(607, rel=0.04)
    assert lengths.max() == pytest.approx(1302, rel=0.05)  # the 7.5/8 quantile
    assert all(i.min() >= 0 and i.max() < phrases.tokens.sizes[0] for i in phrases.ids)
    batches = phrases.batches()
    assert [b.n_phrases for b in batches] == [4, 4]
    packed = np.concatenate([b.ids_NF.numpy() for b in batches])
    assert np.array_equal(packed, np.concatenate(list(phrases.ids)))


@pytest.mark.usefixtures("speed")
def test_model_flops_count_what_the_model_multiplies() -> None:
    """The formula against PyTorch's own counter on the encoder, phrase by phrase."""
    import torch
    from sides import model_flops
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from midigenre.models import Encoder

    lengths = [70, 20]
    # The counter knows neither oneDNN's product nor the CPU's flash attention.
    encoder = Encoder(32, 2, 4, 48).double()
    h_ND = torch.randn(90, 32, dtype=torch.float64, requires_grad=True)
    cu_seqlens = torch.tensor([0, 70, 90], dtype=torch.int32)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        encoder(h_ND, cu_seqlens, lengths).sum().backward()
    shape = SimpleNamespace(d_model=32, n_layers=2, d_ff=48)
    assert model_flops(SimpleNamespace(lengths=lengths), shape) == counter.get_total_flops()


@pytest.mark.usefixtures("speed")
def test_tables_take_ratios_within_a_repeat(tmp_path: Path) -> None:
    from table import BEGIN, END, markdown, write

    sides = {"ours": [1.0, 2.0, 4.0], "ours, dropout 0": [1.0, 1.0, 1.0]}
    theirs = {"DistilBERT as shipped": [6.0, 10.0, 28.0]}
    one = {
        "about": "x", "n_phrases": 2, "batch_phrases": 2, "n_tokens": 100, "lengths": [40, 60],
        "model_flops": 50e9, "real_token_share": dict.fromkeys([*sides, *theirs], 1.0),
        "seconds": sides | theirs,
    }  # fmt: skip
    known = {"cpu": "c", "cpu_capability": "AVX512", "threads": 1, "versions": {"torch": "2"}}
    result = {
        "environment": known, "shape": {"d_model": 8}, "sets": {"a": one}, "loader_ms": [1.0],
        "peak_gflops": [{"mkl": 50.0, "onednn": 90.0}, {"mkl": 40.0, "onednn": 100.0}],
        "lightning_ms": {"trainer": [5.0, 9.0], "bare": [4.0, 7.0]},
    }  # fmt: skip
    text = markdown({"default": result, "reuse": result})
    # Ratios 6, 5, 7 against 5 of the medians' quotient.
    assert "| DistilBERT as shipped | a | default | 6 (5–7) | 10 (6–28) | 5 |" in text
    assert "| ours | 100% | 50 (25–100) | 50 (25–100) |" in text
    assert "| ours, dropout 0 | a | default | 50 | 100% of 50 | 50% of 100 |" in text
    assert "| Lightning over the bare loop, ms a step | 1.5 (1–2) | 1.5 (1–2) |" in text

    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write(readme, text)
    assert readme.read_text() == f"before\n{BEGIN}\n\n{text}\n\n{END}\nafter\n"


@pytest.mark.usefixtures("speed")
def test_loader_share_of_lightnings_profile() -> None:
    from gpu import loader_share
    from lightning.pytorch.profilers import SimpleProfiler

    profiler = SimpleProfiler()
    profiler.recorded_durations |= {
        "[_TrainingEpochLoop].train_dataloader_next": [0.5, 0.00002],
        "run_training_batch": [4.0, 5.5],
        "val_next": [100.0],
    }
    assert loader_share(profiler.summary()) == pytest.approx(0.05, rel=1e-3)
