"""The slides' sensitivity study: learning rate, batch, depth, noise, and what broke at 1e-3.

    python experiments/11_sensitivity/study.py                  # twelve: some 90 minutes of 2 cores
    python experiments/11_sensitivity/study.py --full --jobs 1 -- corpus=xmidi trainer=gpu
    python experiments/11_sensitivity/study.py --table              # from what is kept

One setting at a time is changed around a learning rate of 1e-4, batches of 64 and 8 layers; then
noise is added to the token ids (:mod:`token_noise`), as the slides do. The generator is the slides'
(norms after the residuals, Adam), cut to what two cores can train, or in their size with
``--full``. What follows ``--`` goes to every training. The test songs are not read
(``test=false``): scores are of the validation songs after the last epoch. A run that has ended is
not trained again, one that was stopped resumes (``--out``). Scores go to ``results/<name>.json``
(``--name``; those of other seeds stay there), the figure to ``results/<name>.png``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from midigenre.evaluation.compare import markdown_table
from midigenre.evaluation.figures import BLUE, FAINT, GRID, INK, new_figure, save, titles
from midigenre.files import read_json, write_json

sys.path.append(str(Path(__file__).parents[1]))
from quietly import commit, midigenre, side_by_side, training

RESULTS = Path(__file__).parent / "results"
CUT = (
    "model.d_model=64", "model.n_heads=4", "model.d_ff=256", "data.max_tokens=64",
    "data.phrase_bars=2", "corpus.limit=400", "augment=none",
)  # fmt: skip
"""The slides' model and windows cut to two cores."""


@dataclass(frozen=True)
class Setting:
    """One configuration.

    Attributes:
        lr: Learning rate, the highest of a schedule.
        batch: Windows of an update.
        layers: Depth.
        norm: ``post`` the residuals, as the slides' model, or ``pre``.
        schedule: ``none``, or ``onecycle`` with its warm-up.
        change: What the slides set against noise: ``attention dropout`` of 0.3, or an
            ``extra norm`` of each layer's output; empty for neither.
        noise: Whether token ids are noisy.
    """

    lr: float = 1e-4
    batch: int = 64
    layers: int = 8
    norm: str = "post"
    schedule: str = "none"
    change: str = ""
    noise: bool = False

    @property
    def name(self) -> str:
        """Of its run's folder."""
        name = f"lr{self.lr:g}-batch{self.batch}-layers{self.layers}-{self.norm}-{self.schedule}"
        noise = "-noise" if self.noise else ""
        return name + (f"-{self.change.replace(' ', '_')}" if self.change else "") + noise

    def overrides(self, seed: int) -> list[str]:
        """For ``midigenre train``."""
        optim = ["optim=onecycle"]
        if self.schedule == "none":  # Adam with torch's defaults, at one rate from the first step
            optim = [
                "optim=adamw", "optim.schedule=constant", "optim.warmup_share=0",
                "optim.weight_decay=0", "optim.betas=[0.9,0.999]",
            ]  # fmt: skip
        return [
            *optim, f"optim.lr={self.lr}", f"data.batch_phrases={self.batch}",
            f"model.n_layers={self.layers}", f"model.norm={self.norm}", *CHANGES[self.change],
            *(NOISE if self.noise else ()), f"seed={seed}",
        ]  # fmt: skip


CHANGES = {
    "": (),
    "attention dropout": ("model.attention_dropout=0.3",),
    "extra norm": ("model.extra_norm=true",),
}
NOISE = ("+callbacks.noise._target_=token_noise.TokenNoise", "+callbacks.noise.seed=${seed}")

BASE = Setting()
SWEEPS: Mapping[str, Mapping[float, Setting]] = {
    "learning rate": {lr: replace(BASE, lr=lr) for lr in (5e-5, 1e-4, 5e-4, 1e-3)},
    "batch": {n: replace(BASE, batch=n) for n in (32, 64, 128)},
    "layers": {n: replace(BASE, layers=n) for n in (6, 8, 12)},
}
CAUSES: Mapping[str, Setting] = {
    f"{norm}-norm, {name}": replace(BASE, lr=1e-3, norm=norm, schedule=schedule)
    for norm in ("post", "pre")
    for schedule, name in (("none", "no schedule"), ("onecycle", "OneCycle"))
}
"""At 1e-3: which of the norm and the missing schedule breaks the training?"""

NOISES: Mapping[str, tuple[Setting, Setting]] = {
    change or "base": (replace(BASE, change=change), replace(BASE, change=change, noise=True))
    for change in CHANGES
}
"""Each without noise and with it."""

SLIDES: Mapping[str, Mapping[float, float]] = {
    "learning rate": {5e-5: 0.591, 1e-4: 0.701, 5e-4: 0.744, 1e-3: 0.013},
    "batch": {32: 0.722, 64: 0.704, 128: 0.663},
    "layers": {6: 0.689, 8: 0.701, 12: 0.716},
}
"""Validation token accuracy after ten epochs of XMIDI, as the slides have it."""

SLIDES_NOISE: Mapping[str, tuple[float, float]] = {
    "base": (0.700, 0.367), "attention dropout": (0.699, 0.358), "extra norm": (0.716, 0.369)
}  # fmt: skip
"""Likewise, without noise and with it."""


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--full", action="store_true", help="the slides' size: needs a GPU")
    parser.add_argument("--jobs", type=int, help="trainings at a time; default: one a core")
    parser.add_argument("--out", type=Path, default=Path("runs/11_sensitivity"))
    parser.add_argument("--name", default="twelve", help="of the results")
    parser.add_argument("--table", action="store_true", help="print what is kept")
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args, more = parser.parse_args(sys.argv[1:at]), sys.argv[at + 1 :]
    kept = RESULTS / f"{args.name}.json"
    if not args.table:
        more = [f"trainer.max_epochs={args.epochs}", *(() if args.full else CUT), *more]
        before = read_json(kept) if kept.is_file() else {}
        rows = study(args.seeds, args.out, more, args.jobs)
        if before.get("settings") == more:  # of other seeds
            rows += [row for row in before["rows"] if row["seed"] not in args.seeds]
        write_json(kept, {"settings": more, "rows": rows})
        save(figure(read_json(kept)), RESULTS / f"{args.name}.png")
    print(tables(read_json(kept)))


def settings() -> list[Setting]:
    """All configurations, each once."""
    swept = (setting for sweep in SWEEPS.values() for setting in sweep.values())
    noisy = (setting for pair in NOISES.values() for setting in pair)
    return list(dict.fromkeys((*swept, *CAUSES.values(), *noisy)))


def study(
    seeds: Sequence[int], out: Path, more: Sequence[str], jobs: int | None = None
) -> list[dict[str, Any]]:
    """Trains what is missing; validation loss and accuracy of each run, and what it cost."""
    runs = [(setting, seed) for seed in seeds for setting in settings()]
    work = [
        partial(_train, out / setting.name / str(seed),
                [*setting.overrides(seed), *more])
        for setting, seed in runs
    ]  # fmt: skip
    # Where the trainings find the noise.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH")))
    )
    side_by_side("trainings", work, jobs)
    rows = []
    for setting, seed in runs:
        run = out / setting.name / str(seed)
        found, cost = read_json(run / "metrics.json"), read_json(run / "cost.json")
        rows.append(
            {"setting": setting.name, "seed": seed, "commit": commit(),
             "accuracy": found["val"]["val/accuracy"],
             "loss": found["val"]["val/loss"], "steps": found["steps"],
             "seconds": round(cost["fit_seconds"])}
        )  # fmt: skip
    return rows


def _train(run: Path, overrides: Sequence[str]) -> None:
    begin = ("experiment=slides", "callbacks.samples=null", "test=false", *overrides)
    if (given := training(run, begin)) is not None:
        midigenre("train", *given)


def _of(found: dict[str, Any], setting: Setting, score: str) -> list[float]:
    """The scores of a configuration's seeds."""
    return [row[score] for row in found["rows"] if row["setting"] == setting.name]


def _shown(values: Sequence[float]) -> str:
    """Mean and range over the seeds."""
    if not values:
        return "–"
    low, high = min(values), max(values)
    return f"{np.mean(values):.3f}" + (f" ({low:.3f}–{high:.3f})" if len(values) > 1 else "")


def tables(found: dict[str, Any]) -> str:
    """The three sweeps beside the slides, the two by two at 1e-3, and the noise."""
    header = ["", "accuracy", "loss", "updates", "minutes", "accuracy, slides"]
    lines = []
    for name, sweep in SWEEPS.items():
        for value, setting in sweep.items():
            lines.append([f"{name} {value:g}", *_row(found, setting), f"{SLIDES[name][value]:.3f}"])
    causes = [[name, *_row(found, setting)] for name, setting in CAUSES.items()]
    noises = [
        [name, *(_shown(_of(found, setting, "accuracy")) for setting in pair),
         *(f"{accuracy:.3f}" for accuracy in SLIDES_NOISE[name])]
        for name, pair in NOISES.items()
    ]  # fmt: skip
    return (
        markdown_table(header, lines, 1)
        + "\n\nAt a learning rate of 1e-3:\n\n"
        + markdown_table(header[:-1], causes, 1)
        + "\n\nAccuracy with noise on the token ids:\n\n"
        + markdown_table(["", "clean", "noise", "clean, slides", "noise, slides"], noises, 1)
    )


def _row(found: dict[str, Any], setting: Setting) -> Iterator[str]:
    yield _shown(_of(found, setting, "accuracy"))
    yield _shown(_of(found, setting, "loss"))
    steps, seconds = (_of(found, setting, name) for name in ("steps", "seconds"))
    yield f"{np.mean(steps):,.0f}" if steps else "–"
    yield f"{np.mean(seconds) / 60:.1f}" if seconds else "–"


def figure(found: dict[str, Any]) -> Figure:
    """Accuracy by learning rate, batch and layers: each seed, their mean, and the slides'."""
    made = new_figure(12, 4.2)
    panels = made.subplots(1, len(SWEEPS), sharey=True)
    for axes, (name, sweep) in zip(panels, SWEEPS.items(), strict=True):
        places = range(len(sweep))
        for place, setting in zip(places, sweep.values(), strict=True):
            values = _of(found, setting, "accuracy")
            axes.scatter([place] * len(values), values, s=18, color=BLUE, alpha=0.5, linewidth=0)
        means = [np.mean(_of(found, setting, "accuracy") or [np.nan]) for setting in sweep.values()]
        axes.plot(places, means, color=BLUE, marker="o", label="here")
        axes.plot(places, list(SLIDES[name].values()), color=FAINT, marker="s", linestyle="--",
                  label="slides (XMIDI, 512 wide)")  # fmt: skip
        axes.set_xticks(places, [f"{value:g}" for value in sweep])
        axes.tick_params(length=0, colors=INK, labelsize=9)
        axes.spines[:].set_visible(False)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        titles(axes, name.capitalize(), "validation token accuracy, ten epochs")
    panels[0].set_ylim(0, 1)
    panels[1].legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower left")
    return made


if __name__ == "__main__":
    main()
