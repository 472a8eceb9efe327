"""Where the time of ``midigenre predict`` goes; see README.md.

``measure.py --run RUN --files FILE_OR_DIR ...`` answers the files three times, as ``predict`` does,
and times the stages; then it times a training step over the same phrases, and the matmul peak.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

import midigenre.tasks.predict as tasks
from midigenre.commands import predict
from midigenre.corpora.folder import midi_files
from midigenre.data import sandbox as reading
from midigenre.data.phrases import MemorySongs, PhraseReader, consecutive, phrase_length
from midigenre.data.sandbox import read_song
from midigenre.files import write_json
from midigenre.inference import classifier
from midigenre.registry import conf_dir
from midigenre.spec import Batch
from midigenre.tasks.predict import group_by_budget
from midigenre.tokenizers.base import from_spec
from midigenre.trained import Run, load_run

sys.path.insert(0, str(Path(__file__).parents[1] / "speed"))

SECONDS = 12.0  # of each rate
PHRASES = 64  # in a batch


def settings(run: str, guard: bool) -> DictConfig:
    """The command's settings."""
    with initialize_config_dir(str(conf_dir().resolve()), version_base=None):
        cfg = compose("predict", [f"guard={str(guard).lower()}"])
    OmegaConf.update(cfg, "run", run)
    return cfg


STAGES = {
    "load": "open the run, start the reader",
    "file": "read the bytes",
    "parse": "parse MIDI",
    "clean": "quantise",
    "encode": "encode",
    "guard": "the same three in the reader's process, to it and back",
    "cut": "cut and batch phrases",
    "model": "model",
    "songs": "from phrases to songs",
    "answer": "write answers",
    "rest": "the rest",
}


class Stopwatch:
    """Adds up the wall time of functions of the command, each moment to the innermost stage."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.tokens = 0
        self._stages, self._since = ["rest"], time.perf_counter()

    def _turn(self) -> None:
        now = time.perf_counter()
        self.seconds[self._stages[-1]] += now - self._since
        self._since = now

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time counts for a stage."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self._turn()
            self._stages.append(stage)
            try:
                found = function(*args, **kwargs)
            finally:
                self._turn()
                self._stages.pop()
            self.tokens += found.n_tokens if isinstance(found, Batch) else 0
            return found

        return call

    @contextlib.contextmanager
    def on(self, *places: tuple[str, Any, str]) -> Iterator[None]:
        """Times functions for a while: the stage, the module or class, and the function's name."""
        with contextlib.ExitStack() as patched:
            for stage, owner, name in places:
                timed = self.timed(stage, getattr(owner, name))
                patched.enter_context(mock.patch.object(owner, name, timed))
            yield
        self._turn()


def answered(cfg: DictConfig, files: Sequence[str]) -> dict[str, Any]:
    """One run of the command in this process; all files are readable."""
    kind = type(from_spec(load_run(cfg.run).tokens))
    watch, began = Stopwatch(), time.perf_counter()
    with (
        contextlib.redirect_stdout(io.StringIO()),
        watch.on(
            ("load", predict, "load_run"),
            ("load", predict.Classifier, "__init__"),
            ("load", reading.FileReader, "wait"),
            ("file", reading, "file_bytes"),
            ("parse", reading, "read_score"),
            ("clean", kind, "clean"),
            ("encode", kind, "encode"),
            ("guard", reading.Sandbox, "read"),
            ("cut", tasks, "consecutive"),
            ("cut", PhraseReader, "lengths"),
            ("cut", PhraseReader, "__call__"),
            ("cut", tasks.Batch, "from_phrases"),
            ("model", tasks, "predict_phrases"),
            ("songs", classifier, "song_scores"),
            ("answer", predict.Classifier, "_describe"),
            ("answer", predict, "_say_json"),
        ),
    ):
        predict.run(cfg, files)
    each = {stage: 1e3 * s / len(files) for stage, s in watch.seconds.items() if stage != "load"}
    return {
        "files": len(files),
        "wall_s": time.perf_counter() - began,
        "load_s": watch.seconds["load"],
        "ms_a_file": each,
        "ms_a_file_not_model": sum(v for stage, v in each.items() if stage != "model"),
        "tokens": watch.tokens,
        "tokens_a_second": watch.tokens / watch.seconds["model"],
    }


def median(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of each number."""
    found: dict[str, Any] = {}
    for key, value in runs[0].items():
        theirs = [run[key] for run in runs]
        found[key] = median(theirs) if isinstance(value, dict) else statistics.median(theirs)
    return found


def batches_of(trained: Run, files: Sequence[str]) -> list[Batch]:
    """Batches of the files' phrases with made-up labels, which cost what true ones do."""
    tokenizer = from_spec(trained.tokens)
    songs = MemorySongs([read_song(Path(file).read_bytes(), tokenizer) for file in files])
    phrases = consecutive(songs, np.arange(len(songs)), phrase_length(trained.data, trained.tokens))
    reader = PhraseReader(songs, trained.tokens, trained.data["max_tokens"], trained.data["marks"])
    heads = trained.classifier.label_heads()
    draw = np.random.default_rng(0)
    batches = []
    for group in group_by_budget(reader.lengths(phrases), PHRASES, None):
        chosen = phrases.select(group)
        labels = {
            label: draw.integers(0, len(head.classes), len(chosen)) for label, head in heads.items()
        }
        ids = [reader(*place)[0] for place in chosen.places()]
        batches.append(Batch.from_phrases(ids, labels, chosen.song, chosen.first))
    return batches


def rate(step: Callable[[Batch], None], batches: Sequence[Batch]) -> float:
    """Tokens a second over batches, after one to warm up."""
    step(batches[0])
    began, tokens = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        for batch in batches:
            step(batch)
            tokens += batch.n_tokens
            if time.perf_counter() - began >= SECONDS:
                break
    return tokens / (time.perf_counter() - began)


def rates(trained: Run, batches: Sequence[Batch]) -> dict[str, float]:
    """Tokens a second of the forward pass alone and of a training step."""
    model = trained.classifier
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def forward(batch: Batch) -> None:
        with torch.no_grad():
            model(batch)

    def train(batch: Batch) -> None:
        optimizer.zero_grad()
        loss: torch.Tensor = model.loss(model(batch), batch)[0]
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    model.eval()
    found = {"forward": rate(forward, batches)}
    model.train()
    return found | {"training step": rate(train, batches)}


def table(result: dict[str, Any]) -> str:
    """In Markdown."""
    lines = ["| stage | with the guard, ms a file | without |", "|---|---:|---:|"]
    guarded, plain = result["guarded"], result["in_process"]
    for stage, about in STAGES.items():
        values = [found["ms_a_file"].get(stage, 0.0) for found in (guarded, plain)]
        if any(values):
            lines.append(f"| {about} | {values[0]:.2f} | {values[1]:.2f} |")
    key = "ms_a_file_not_model"
    lines.append(f"| **all but the model** | **{guarded[key]:.2f}** | **{plain[key]:.2f}** |")
    lines += [
        "",
        f"{guarded['files']} files, {guarded['tokens']:,} tokens; opening the run and starting the "
        f"reader {guarded['load_s']:.1f} s (without the guard {plain['load_s']:.1f} s).",
        "",
        "| | tokens/s | GFLOP/s | of the matmul peak |",
        "|---|---:|---:|---:|",
    ]
    peak = max(result["peak_gflops"].values())
    flops = result["forward_flops_a_token"]
    for name, tokens, passes in (
        ("predict, model with all around it", guarded["tokens_a_second"], 1),
        ("forward", result["rates"]["forward"], 1),
        ("training step", result["rates"]["training step"], 3),
    ):
        gflops = passes * flops * tokens / 1e9
        lines.append(f"| {name} | {tokens:,.0f} | {gflops:.1f} | {gflops / peak:.0%} |")
    lines.append(f"| matmul peak | | {peak:.1f} | |")
    return "\n".join(lines)


def main() -> None:
    """Measures, writes the JSON, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="folder of a trained classifier")
    parser.add_argument("--files", required=True, nargs="+", help="MIDI files, or folders of them")
    parser.add_argument("--limit", type=int, default=200, help="files, evenly spread; 0 for all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0 for all cores")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/predict.json")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    files: list[str] = []
    for text in args.files:
        path = Path(text)
        files += map(str, midi_files(path)) if path.is_dir() else [text]
    if args.limit and args.limit < len(files):
        places = np.linspace(0, len(files) - 1, args.limit).astype(int)
        files = [files[i] for i in places]
    from sides import matmul_peak, model_flops  # experiments/speed

    trained = load_run(args.run)
    if trained.config is None or "n_heads" not in trained.config.model:
        sys.exit("measure: the operations are counted for an encoder; give a run of one")
    batches = batches_of(trained, files[:: max(1, len(files) // 40)])
    shape = trained.config.model
    lengths = [length for batch in batches for length in batch.lengths]
    # Forward and backward together are three forward passes.
    flops = model_flops(cast(Any, SimpleNamespace(lengths=lengths)), shape) / 3 / sum(lengths)
    rows = statistics.median_high([b.n_tokens for b in batches])
    peak = matmul_peak(shape, rows)
    result = {
        "tokenizer": trained.tokens.name,
        "parameters": sum(p.numel() for p in trained.model.parameters()),
        "data": dict(trained.data),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "forward_flops_a_token": flops,
        "guarded": median([answered(settings(args.run, True), files) for _ in range(args.repeats)]),
        "in_process": answered(settings(args.run, False), files),
        "rates": rates(trained, batches),
        "peak_gflops": {k: max(v, matmul_peak(shape, rows)[k]) for k, v in peak.items()},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.out, result)
    print(table(result))


if __name__ == "__main__":
    main()
