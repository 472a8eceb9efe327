"""Our training step against Hugging Face DistilBERT's, on one thread; see README.md.

``make bench``, or ``python experiments/speed/bench.py --help``. Every allocator setting runs in a
child process of its own, because glibc reads it when a process starts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ALLOCATORS = {
    "default": {},
    # Memory that a step frees stays in the process, and the next step finds it mapped.
    "reuse": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)},
}
OURS = {"ours": None, "ours, dropout 0": 0.0}
THEIRS = {  # dropout, buckets
    "DistilBERT as shipped": (0.1, False),
    "DistilBERT, dropout 0": (0.0, False),
    "DistilBERT, dropout 0, buckets": (0.0, True),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument("--home", type=Path, default=Path(os.environ.get("MIDIGENRE_HOME", ".")))
    parser.add_argument("--shards", type=Path, help="prepared shards for set b; else corpus twelve")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny: does it run at all?")
    parser.add_argument("--ours-only", action="store_true", help="without the bench extra")
    parser.add_argument("--child", choices=ALLOCATORS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    args.out, args.home = args.out.resolve(), args.home.resolve()
    missing = [name for name in ("transformers", "datasets") if find_spec(name) is None]
    if missing and not args.ours_only:
        sys.exit(f"bench: {', '.join(missing)} not installed; run `make bench`, which installs it")
    if args.child:
        run_child(args)
        return
    from table import markdown, write

    args.out.mkdir(parents=True, exist_ok=True)
    for name, setting in ALLOCATORS.items():
        begin = time.perf_counter()
        # One thread everywhere, and none of the reader's own allocator settings.
        env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
        env |= setting | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--child", name]
        subprocess.run(command, env=env, check=True)
        print(f"bench: {name} took {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    results = {
        name: json.loads((args.out / f"{name}.json").read_text(encoding="utf-8"))
        for name in ALLOCATORS
    }
    text = markdown(results)
    print(text)
    if args.out == HERE / "results":
        write(HERE / "README.md", text)


def run_child(args: argparse.Namespace) -> None:
    """Measures everything under one allocator setting and writes ``<out>/<allocator>.json``."""
    import torch

    torch.set_num_threads(1)
    from feeding import lightning_ms, loader_ms, reading
    from phrase_sets import full_band, of_shards, prepared
    from sides import matmul_peak

    from midigenre import build
    from midigenre.files import write_json

    cfg, shards = prepared("toy" if args.quick else "twelve", args.home, args.shards)
    if args.quick:
        cfg.model.update(d_model=32, n_layers=1, d_ff=32)
    data = build.make_data(cfg, shards)
    # Few and short for DistilBERT as shipped: its attention weights of one batch of (a) are kept
    # for backward at 0.3 GB each, three times a layer.
    sets = [
        full_band(3, 2, scale=0.2, n_songs=8) if args.quick else full_band(8, 4),
        of_shards(shards, data, 4, 2) if args.quick else of_shards(shards, data, 64, 32),
    ]
    result: dict[str, Any] = {
        "environment": environment(args.child),
        "shape": {k: cfg.model[k] for k in ("d_model", "n_layers", "n_heads", "d_ff")},
        "peak_gflops": [],
        "sets": {},
    }
    for phrases in sets:
        rows = sum(phrases.lengths) * phrases.batch_phrases // len(phrases.ids)
        result["peak_gflops"].append(matmul_peak(cfg.model, rows))
        result["sets"][phrases.name] = throughput(phrases, cfg, args)
        result["peak_gflops"].append(matmul_peak(cfg.model, rows))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        result["loader_ms"] = loader_ms(data, args.repeats)
        steps = 4 if args.quick else 300
        result["lightning_ms"] = lightning_ms(cfg, shards, folder / "tb", args.repeats, steps)
        if not args.ours_only:
            result["reading"] = reading(data, folder / "datasets", args.repeats)
    write_json(args.out / f"{args.child}.json", result)


def throughput(phrases: Any, cfg: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each side for each repeat, the sides in turn."""
    from sides import distilbert, model_flops, ours

    passes, shares, parameters = {}, {}, {}
    for name, dropout in OURS.items():
        model, passes[name] = ours(phrases, cfg, dropout)
        shares[name], parameters[name] = 1.0, sum(p.numel() for p in model.parameters())
    for name, (dropout, buckets) in {} if args.ours_only else THEIRS.items():
        shares[name], model, passes[name] = distilbert(phrases, cfg, dropout, buckets)
        parameters[name] = sum(p.numel() for p in model.parameters())
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for run in passes.values():
        run(1)  # Maps memory and makes kernels.
    for repeat in range(args.repeats):
        for name, run in passes.items():
            took = run(None)
            seconds[name].append(took)
            print(f"bench: {phrases.name} {repeat} {name}: {took:.1f} s", file=sys.stderr)
    return {
        "about": phrases.about,
        "n_phrases": len(phrases.ids),
        "batch_phrases": phrases.batch_phrases,
        "n_tokens": sum(phrases.lengths),
        "lengths": phrases.lengths,
        "model_flops": model_flops(phrases, cfg.model),
        "real_token_share": shares,
        "parameters": parameters,
        "seconds": seconds,
    }


def environment(allocator: str) -> dict[str, Any]:
    """What the numbers depend on."""
    import torch

    versions: dict[str, str | None] = {}
    for name in ("torch", "lightning", "transformers", "datasets", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "cpu": cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "allocator": {"name": allocator, **ALLOCATORS[allocator]},
        "python": platform.python_version(),
        "versions": versions,
    }


def cpu_name() -> str:
    """Model, family and number of the processor; virtual machines shorten the first."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    fields = dict(part.split(":", 1) for part in lines if ":" in part)
    known = {key.strip(): value.strip() for key, value in fields.items()}
    return (
        f"{known.get('model name')}, family {known.get('cpu family')}, model {known.get('model')}"
    )


if __name__ == "__main__":
    main()
