"""Tokens a second of our generator beside full recomputation and Hugging Face; see README.md.

``make bench-generate``, or ``python experiments/02_generation_speed/bench.py --help``. Every
allocator setting runs in a child process of its own, because glibc reads it when a process starts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "speed"))  # Before this folder: both have a bench.py.
from bench import ALLOCATORS, environment  # noqa: E402

TOLERANCE = 1e-3  # float32, twelve layers, products in another order


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--home", type=Path, default=Path(os.environ.get("MIDIGENRE_HOME", ".")))
    parser.add_argument("--run", help="a trained generator, for the quality of int8")
    parser.add_argument("--windows", type=int, default=256, help="test windows for that quality")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs="+", help="batch sizes; default: 1 and 16")
    parser.add_argument("--allocators", nargs="+", choices=ALLOCATORS, default=list(ALLOCATORS))
    parser.add_argument("--quick", action="store_true", help="tiny: does it run at all?")
    parser.add_argument("--ours-only", action="store_true", help="without the bench extra")
    parser.add_argument("--child", choices=ALLOCATORS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    args.out, args.home = args.out.resolve(), args.home.resolve()
    if find_spec("transformers") is None and not args.ours_only:
        sys.exit("bench: transformers not installed; run `make bench-generate`, which installs it")
    if args.child:
        run_child(args)
        return
    from rates import markdown
    from table import write

    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.allocators:
        begin, setting = time.perf_counter(), ALLOCATORS[name]
        env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
        threads = str(args.threads)
        env |= setting | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--child", name]
        subprocess.run(command, env=env | {"HF_HUB_OFFLINE": "1"}, check=True)
        print(f"bench: {name} took {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    results = {
        name: json.loads((args.out / f"{name}.json").read_text(encoding="utf-8"))
        for name in args.allocators
    }
    text = markdown(results)
    print(text)
    if args.out == HERE / "results" and not args.quick:
        write(HERE / "README.md", text)


def run_child(args: argparse.Namespace) -> None:
    """Measures everything under one allocator setting and writes ``<out>/<allocator>.json``."""
    import torch

    torch.set_num_threads(args.threads)
    from loops import SHAPE, difference, subject

    from midigenre.files import write_json

    of = subject(args.quick)
    found = max(difference(of, 1), difference(of, 2))  # Their weights may be laid out differently.
    if found > TOLERANCE:
        sys.exit(f"bench: cached and full logits differ by {found:.1e}: not the same work")
    result: dict[str, Any] = {
        "environment": environment(args.child),
        "shape": {k: of.cfg.model[k] for k in SHAPE} | {"vocabulary": of.n_words},
        "n_tokens": of.n_tokens,
        "largest_logit_difference": found,
        "parameters": {"ours": sum(p.numel() for p in of.model.parameters())},
        "batches": {
            str(rows): measured(of, rows, args)
            for rows in args.rows or ((1, 3) if args.quick else (1, 16))
        },
        # It does not depend on the allocator.
        "int8_quality": quality(args) if args.child == args.allocators[0] else None,
    }
    write_json(args.out / f"{args.child}.json", result)


def measured(of: Any, rows: int, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each side for each repeat, the sides in turn."""
    from loops import hugging_face, loops

    stride = 8 if args.quick else 64
    for run in loops(replace(of, n_tokens=16), rows, 8).values():
        run()  # Maps memory and makes kernels.
    sides, about = loops(of, rows, stride), {"recomputed_every": stride}
    if not args.ours_only:
        _, caches = hugging_face(replace(of, n_tokens=of.n_tokens // 2), rows)
        tried = {name: min(run(), run()) for name, run in caches.items()}
        cache = min(tried, key=lambda name: tried[name])
        about["parameters"], caches = hugging_face(of, rows)
        sides["Hugging Face"] = caches[cache]
        about |= {"cache": cache, "cache_seconds": tried}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(args.repeats):
        for name, run in sides.items():
            seconds[name].append(run())
            print(f"bench: {rows} rows, {repeat}, {name}: {seconds[name][-1]:.1f} s",
                  file=sys.stderr)  # fmt: skip
    return about | {"seconds": seconds}


def int8_cost(model: Any, batches: Iterable[Any], spec: Any) -> dict[str, dict[str, float]]:
    """Scores of a generator and of its int8 form on the same windows, under their own labels.

    Args:
        model: A trained generator, float32 on the CPU, in evaluation mode.
        batches: Windows that it was not trained on.
        spec: Its vocabulary.
    """
    import torch

    from midigenre.evaluation.tokens import TokenMetrics
    from midigenre.models.kernels import quantize_int8

    models = {"float32": model, "int8": quantize_int8(model)}
    metrics = {name: TokenMetrics(spec) for name in models}
    with torch.inference_mode():
        for batch in batches:
            for name, one in models.items():
                metrics[name].update(*one.loss(batch), batch.ids_NF)
    return {
        name: {key: float(value) for key, value in found.compute().items()}
        for name, found in metrics.items()
    }


def quality(args: argparse.Namespace) -> dict[str, Any] | None:
    """Scores of the run's model and of its int8 form on test windows; None without a run."""
    if args.run is None:
        return None
    from midigenre.corpora.base import no_progress
    from midigenre.data.datamodule import PhraseDataModule
    from midigenre.trained import load_run, own_shards

    trained = load_run(args.run, "best", "generator")
    shards = own_shards(trained, str(args.home), None, no_progress)
    data = PhraseDataModule(shards.folder, **{**trained.data, "eval_batch_phrases": 8})
    batches = list(data.eval_dataloader("test"))
    batches = batches[:: max(1, len(batches) * 8 // args.windows)]
    return {
        "run": Path(args.run).resolve().parent.name,
        "model": trained.config.model.name,
        "corpus": shards.folder.name.split("-")[0],
        "n_windows": sum(batch.n_phrases for batch in batches),
        "n_steps": sum(batch.n_tokens for batch in batches),
        "scores": int8_cost(trained.model, batches, trained.tokens),
    }


if __name__ == "__main__":
    main()
