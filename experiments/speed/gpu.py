"""Packed attention, training and generation on one GPU; ``python experiments/speed/gpu.py``.

Checks that packed attention in bfloat16 on the GPU equals float32 on the CPU within the tolerance
of bfloat16, then measures real tokens/s and model FLOP/s utilisation of the training step of
``model=base`` (bfloat16 autocast, batches with the lengths of real full-band songs) in several
settings, what ``midigenre train`` makes of it, and the tokens/s that ``model=deep`` writes. Prints
one line of JSON; README.md has the tables.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from midigenre.models import Encoder
from midigenre.models.kernels import compile_layers
from midigenre.models.sequences import packed_attention

HERE = Path(__file__).resolve().parent

# Dense bfloat16 with float32 sums, TFLOP/s, from NVIDIA's data sheets.
PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "4090": 165}


@dataclass(frozen=True)
class Setting:
    """One way to train.

    Attributes:
        phrases: Phrases in a batch.
        compiled: Whether the layers go through ``torch.compile`` (``compile=true``).
        deterministic: Whether PyTorch prefers deterministic kernels, as ``trainer.deterministic``
            (``warn``, the default of ``midigenre train``) asks it to.
        n_heads: Heads of the model; None for its own.
    """

    phrases: int = 64
    compiled: bool = False
    deterministic: bool = False
    n_heads: int | None = None


SETTINGS = {
    "as it is": Setting(),
    "deterministic=warn": Setting(deterministic=True),
    "256 phrases": Setting(phrases=256),
    "compiled": Setting(compiled=True),
    "compiled, 256 phrases": Setting(compiled=True, phrases=256),
    "compiled, 256 phrases, 4 heads of 128": Setting(phrases=256, compiled=True, n_heads=4),
}

COMMANDS = {
    "as it is": (),
    "compile=true": ("compile=true",),
    "compile=true, 256 phrases": ("compile=true", "data.batch_phrases=256"),
    "that, data.num_workers=4, data.pin_memory=true": (
        "compile=true", "data.batch_phrases=256", "data.num_workers=4", "data.pin_memory=true",
    ),
}  # fmt: skip
"""Overrides of ``midigenre train``."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--peak-tflops", type=float, help="bfloat16 peak of a GPU not known here")
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--commands", nargs="*", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 64], help="pieces side by side")
    parser.add_argument("--profile", type=Path, help="folder for the profiler's tables")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu: torch sees no CUDA device here; run this on a machine with an NVIDIA GPU")
    name = torch.cuda.get_device_name()
    peak = args.peak_tflops or next((v for k, v in PEAK_TFLOPS.items() if k in name), None)
    if peak is None:
        sys.exit(f"gpu: no peak known for {name}; give its dense bfloat16 one with --peak-tflops")
    found: dict[str, Any] = {
        "device": name,
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "peak_tflops": peak,
        "product_tflops": product_tflops(),
        **agreement(),
        "training": {},
    }
    for key in args.settings:
        found["training"][key] = training(SETTINGS[key], args.steps, peak, args.profile, key)
        print(f"gpu: {key}: {found['training'][key]}", file=sys.stderr)
    if args.rows:
        found["generation"] = {str(rows): generation(rows) for rows in args.rows}
    if args.commands:
        found["command"] = commands(args.commands)
    print(json.dumps(found))


def product_tflops(n: int = 8192) -> float:
    """TFLOP/s of a large bfloat16 product of random numbers: what this card really reaches."""
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(20):
        a @ b
    torch.cuda.synchronize()
    return 20 * 2 * n**3 / (time.perf_counter() - begin) / 1e12


def agreement() -> dict[str, float]:
    """Largest difference of outputs and gradients to the CPU's; stops if it is beyond bfloat16."""
    lengths = (5, 1, 130, 64, 700)
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    torch.manual_seed(0)
    # Rounded first, so that both sides start from the same numbers.
    qkv = torch.randn(sum(lengths), 3, 8, 64).bfloat16()
    gradient = torch.randn(sum(lengths), 8, 64).bfloat16()
    results = []
    for device, kind in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        x = qkv.to(device, kind).requires_grad_()
        q, k, v = x.unbind(1)
        out = packed_attention(q, k, v, cu_seqlens.to(device), lengths, causal=False)
        out.backward(gradient.to(device, kind))  # type: ignore[no-untyped-call]
        assert x.grad is not None
        results.append([out.detach().cpu().float(), x.grad.cpu().float()])
    for gpu, cpu in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(gpu, cpu, atol=2e-2, rtol=2e-2)
    differences = [float((a - b).abs().max()) for a, b in zip(*results, strict=True)]
    return dict(zip(("output_difference", "gradient_difference"), differences, strict=True))


@contextmanager
def _preferring_deterministic(wanted: bool) -> Iterator[None]:
    """Sets ``trainer.deterministic=warn`` for a while."""
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def training(
    setting: Setting, steps: int, peak_tflops: float, profile: Path | None, name: str
) -> dict[str, Any]:
    """Throughput of the step of ``model=base`` and its share of the GPU's peak.

    Four batches of different lengths take turns, all of them on the GPU beforehand.
    """
    from phrase_sets import composed, full_band
    from sides import CLIP, model_flops

    from midigenre import build

    cfg = composed("model=base")
    phrases = full_band(4 * setting.phrases, setting.phrases)
    model_cfg, task_cfg = build.plain(cfg.model), build.plain(cfg.task)
    if setting.n_heads is not None:
        model_cfg["n_heads"] = setting.n_heads
    torch.manual_seed(0)
    model = build.make_model(model_cfg, task_cfg, phrases.tokens, phrases.classes).cuda().train()
    optimizer = build.make_optim(cfg).optimizer(model)
    batches = [batch.to("cuda") for batch in phrases.batches()]
    torch.cuda.reset_peak_memory_stats()

    def loss_of(batch: Any) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            loss: Tensor = model.loss(model(batch), batch)[0]
        return loss

    def run(n: int) -> float:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for batch in islice(cycle(batches), n):
            optimizer.zero_grad()
            loss_of(batch).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
        torch.cuda.synchronize()
        return time.perf_counter() - begin

    found: dict[str, Any] = {}
    with _preferring_deterministic(setting.deterministic):
        if setting.compiled:
            assert isinstance(model.backbone, Encoder)
            compile_layers(model.backbone)
        begin = time.perf_counter()
        run(8)  # Compiles kernels and fills caches.
        found["first_steps_seconds"] = time.perf_counter() - begin
        steps = -(-steps // len(batches)) * len(batches)
        seconds = [run(steps) for _ in range(3)]
        if profile is not None:
            found["kernels"] = profiled(run, profile, name)
    passes = steps / len(batches)
    flops, n_tokens = model_flops(phrases, cfg.model) * passes, sum(phrases.lengths) * passes
    rates = sorted(flops / s / 1e12 for s in seconds)
    return found | {
        "tokens_a_batch": sum(phrases.lengths) // len(batches),
        "ms_a_step": statistics.median(seconds) / steps * 1e3,
        "tokens_per_second": n_tokens / statistics.median(seconds),
        "model_tflops": rates,
        "mfu": rates[1] / peak_tflops,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 2**30,
    }  # fmt: skip


KERNELS = {
    "attention": "flash|fmha",
    "matrix products": "gemm|nvjet|cutlass|splitk",
    "optimizer, gradient norm": "multi_tensor|adam|lpnorm",
}


def profiled(run: Any, folder: Path, name: str) -> dict[str, float]:
    """Milliseconds a step that the GPU spends in each kind of kernel; the table goes to a file."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run(4)
    events = profiler.key_averages()
    folder.mkdir(parents=True, exist_ok=True)
    table = events.table(sort_by="self_device_time_total", row_limit=60, max_name_column_width=110)
    (folder / f"profile-{re.sub('[^a-z0-9]+', '-', name)}.txt").write_text(table)
    spent = dict.fromkeys([*KERNELS, "the rest"], 0.0)
    for event in events:
        if event.device_type != torch.autograd.DeviceType.CUDA or event.is_user_annotation:
            continue  # An annotation spans kernels that are counted themselves.
        kind = next((k for k, r in KERNELS.items() if re.search(r, event.key, re.I)), "the rest")
        spent[kind] += event.self_device_time_total / 4e3
    return spent


def commands(names: Sequence[str]) -> dict[str, Any]:
    """``midigenre train`` as a user runs it, on bands in a folder.

    Tokens/s are those that it logs itself: from one logged step to the next, without validation;
    the first is left out, and with ``compile=true`` the second, too. The loader's share is the time
    in which the loop waits for its next batch, of that and the steps, by Lightning's profiler: the
    GPU, which runs behind, idles at most so long for its sake.
    """
    import numpy as np
    from phrase_sets import _band

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(720):
            path = Path(folder) / "songs" / f"class{i % 12}" / f"{i}.mid"
            path.parent.mkdir(parents=True, exist_ok=True)
            _band(np.random.default_rng(i), busy=(i + 1) / 720).dump_midi(str(path))
        for number, name in enumerate(names):
            command = [
                sys.executable, "-m", "midigenre", "train", "corpus=folder",
                f"corpus.root={folder}/songs", f"home={folder}", f"name=run{number}", "model=base",
                "trainer=gpu", "precision=bf16", "data.batch_phrases=64", "data.max_tokens=2048",
                "trainer.max_epochs=8", "trainer.check_val_every_n_epoch=8", "logger=csv",
                "profiler=simple", "trainer.log_every_n_steps=3", *COMMANDS[name],
            ]  # fmt: skip
            begin = time.perf_counter()
            subprocess.run(
                command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            seconds = time.perf_counter() - begin
            log = next((Path(folder) / "runs" / f"run{number}").glob("*/csv/metrics.csv"))
            with log.open(encoding="utf-8") as lines:
                logged = [row.get("train/tokens_per_second") for row in csv.DictReader(lines)]
            settling = 2 if "compile=true" in command else 1
            rates = [float(value) for value in logged if value][settling:]
            profile = next((Path(folder) / "runs" / f"run{number}").glob("*/fit-profile.txt"))
            found[name] = {
                "tokens_per_second": statistics.median(rates),
                "smallest_and_largest": [min(rates), max(rates)],
                "loader_share": loader_share(profile.read_text()),
                "seconds_of_the_command": seconds,
            }
            print(f"gpu: midigenre train, {name}: {found[name]}", file=sys.stderr)
    return found


def loader_share(profile: str) -> float:
    """Seconds of waiting for the next batch, divided by those and the steps' own.

    Args:
        profile: The table of Lightning's ``SimpleProfiler``.

    Returns:
        From 0 to 1.

    Raises:
        KeyError: The table has no training.
    """
    totals = {}
    for line in profile.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) >= 5 and re.fullmatch(r"[\d.e+-]+", cells[4]):
            totals[cells[1]] = float(cells[4])
    waiting = totals["[_TrainingEpochLoop].train_dataloader_next"]
    return waiting / (waiting + totals["run_training_batch"])


def generation(rows: int, n_tokens: int = 256) -> dict[str, Any]:
    """Tokens/s of ``model=deep`` in float32, for rows side by side.

    As in ``experiments/02_generation_speed``: the bare loop, and the sampler with its grammar.
    """
    sys.path.insert(0, str(HERE.parent / "02_generation_speed"))
    from dataclasses import replace

    from loops import drawn, sampled, subject

    of = replace(subject(quick=False), n_tokens=n_tokens)
    model = of.model.cuda()

    @torch.inference_mode()
    def bare() -> float:
        told = {"genre": torch.arange(rows, device="cuda") % 12}
        nothing = torch.zeros(0, 1, dtype=torch.int64, device="cuda")
        torch.cuda.synchronize()
        begin = time.perf_counter()
        h_BD, decoding = model.begin(told, [nothing] * rows, n_tokens)
        for step in range(n_tokens):
            ids_BF = drawn(model.head.field_logits(h_BD, 0, nothing))
            if step + 1 < n_tokens:
                h_BD = model.advance(ids_BF, decoding)
        torch.cuda.synchronize()
        return time.perf_counter() - begin

    found = {}
    for name, run in (("bare loop", bare), ("sampler", lambda: sampled(of, model, rows))):
        run()
        found[name] = sorted(rows * n_tokens / run() for _ in range(3))
    print(f"gpu: {rows} rows: {found}", file=sys.stderr)
    return found


if __name__ == "__main__":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what Lightning sets too
    main()
