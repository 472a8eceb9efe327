"""``midigenre evaluate``: a run on its own test set or any labelled corpus, with noise or not."""

from __future__ import annotations

import contextlib
import difflib
import shlex
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from omegaconf import DictConfig, OmegaConf

from midigenre.arrays import Longs
from midigenre.build import plain, prepared
from midigenre.commands.console import console, progress_bars, say, warn
from midigenre.data.datamodule import PhraseDataModule
from midigenre.data.noise import NoiseSettings, noisy_songs
from midigenre.data.shards import ShardSet
from midigenre.errors import UserError
from midigenre.evaluation.calibration import Calibration
from midigenre.evaluation.figures import save
from midigenre.evaluation.figures.charts import evaluation_figures
from midigenre.evaluation.report import print_scores
from midigenre.files import read_csv, write_json
from midigenre.models import PhraseGenerator
from midigenre.spec import UNKNOWN
from midigenre.storage import check_writable
from midigenre.tasks.evaluate import evaluate_split, fit_calibration
from midigenre.tasks.generate import GenerateTask
from midigenre.tasks.predict import load_song_models
from midigenre.tokenizers.base import from_spec
from midigenre.trained import Run, device_of, load_run, own_shards

SUBSETS = ("train", "val", "test", "all")


def run(cfg: DictConfig, paths: Sequence[str]) -> None:
    """Writes ``RUN/evaluation/<corpus>-<subset>.json``, predictions and figures.

    With noise the names end in it: ``<corpus>-<subset>-jitter_ms=30.json``.

    The predictions of phrases and of songs lie beside the JSON as ``...-predictions.csv`` and
    ``...-predictions_songs.csv``. Figures are PNG files: for each label and level the confusion
    matrix, ``...-reliability.png`` and ``...-coverage.png``.

    Raises:
        UserError: No such run or subset, or the corpus has labels that the run does not know.
    """
    if paths:
        raise UserError(f"evaluate takes no paths after --, got {paths[0]!r}; set corpus.root=DIR")
    if cfg.subset not in SUBSETS:
        raise UserError(f"subset={cfg.subset}; choose {', '.join(SUBSETS)}")
    if not OmegaConf.is_dict(cfg.noise):
        raise UserError(f"noise={cfg.noise}: name what is noisy, as noise.wrong={cfg.noise}")
    noise = NoiseSettings(**plain(cfg.noise))
    if noise.seed and not noise.changed:
        raise UserError(f"noise.seed={noise.seed} alone changes nothing; add noise.wrong=0.1, say")
    device = device_of(cfg.device)
    trained = load_run(cfg.run, cfg.ckpt, ("classifier", "generator"))
    folder = (trained.folder or Path(".")) / "evaluation"
    check_writable(folder, "evaluate a copy of the run that is yours: cp -r RUN COPY, run=COPY")
    if isinstance(trained.model, PhraseGenerator):
        _evaluate_generator(cfg, trained, trained.model.to(device), noise, folder)
        return
    foreign = cfg.get("corpus") is not None or cfg.shards is not None
    own = None
    with progress_bars() as progress:
        if trained.config is not None:
            try:
                shards = own_shards(trained, cfg.home, cfg.n_workers, progress)
                own = PhraseDataModule(shards, **trained.data)
            except UserError as error:
                if not foreign:
                    raise
                warn(f"no baselines: the run's own songs are gone ({error})")
        elif not foreign:
            raise UserError(
                f"run={cfg.run} has no config.yaml, so its test set is not known; give corpus=..."
            )
        data = own
        if foreign:
            shards = prepared(cfg, progress, from_spec(trained.tokens), trained.data)
            # The run's fold and its part of a protocol are of its own songs.
            data = PhraseDataModule(shards, **{**trained.data, "fold": None, "protocol": None})
    assert data is not None
    blends, note = load_song_models(trained.checkpoint, trained.classifier, trained.task)
    if note is not None:
        warn(note)
    # The run's own calibration belongs to its best checkpoint.
    calibration = Calibration.of_run(trained.folder, trained.checkpoint, blends is not None)
    if calibration is None and own is not None:
        say("fitting the calibration on the run's validation songs")
        calibration = fit_calibration(trained.classifier, own, device=device, blends=blends)
    what = _names(shards, cfg.subset, noise)
    name = "-".join(what)
    split = None if cfg.subset == "all" else cfg.subset
    with contextlib.ExitStack() as held:
        if noise.changed:
            data, split = _noisy(data, split, noise, trained, held), None
        evaluation = evaluate_split(
            trained.classifier,
            data,
            split,
            device=device,
            class_maps=class_maps(shards, trained),
            train=own,
            predictions=folder / f"{name}-predictions.csv",
            calibration=calibration,
            blends=blends,
        )
    if not evaluation:
        raise UserError(
            f"{shards.folder} has no label of this run ({', '.join(trained.labels.classes)})"
        )
    write_json(folder / f"{name}.json", evaluation)
    for place, figure in evaluation_figures(evaluation, " ".join(what)).items():
        # The confusion matrix has no name of its own: GENRE-LEVEL.png.
        tail = place.removesuffix("/confusion").replace("/", "-")
        save(figure, folder / f"{name}-{tail}.png")
    print_scores(evaluation, console, details=True)
    print(folder / f"{name}.json")


def _evaluate_generator(
    cfg: DictConfig, trained: Run, model: PhraseGenerator, noise: NoiseSettings, folder: Path
) -> None:
    """Writes ``<corpus>-<subset>.json`` with the nats and hits of a generator on its own songs."""
    if cfg.get("corpus") is not None or cfg.shards is not None:
        raise UserError(
            f"run={cfg.run} is a generator, which is evaluated on its own songs: leave out corpus= "
            "and shards=, or give a classifier"
        )
    with progress_bars() as progress:
        shards = own_shards(trained, cfg.home, cfg.n_workers, progress)
    data = PhraseDataModule(shards, **trained.data)
    split = None if cfg.subset == "all" else cfg.subset
    with contextlib.ExitStack() as held:
        if noise.changed:
            data, split = _noisy(data, split, noise, trained, held), None
        evaluation = GenerateTask.evaluate(model, data, split)
    path = folder / f"{'-'.join(_names(shards, cfg.subset, noise))}.json"
    write_json(path, evaluation)
    GenerateTask.show(evaluation, console)
    print(path)


def _names(shards: ShardSet, subset: str, noise: NoiseSettings) -> list[str]:
    """What was evaluated: corpus, subset and noise."""
    corpus = shards.folder.name.rsplit("-", 2)[0]
    return [corpus, subset, *(f"{key}={value:g}" for key, value in noise.changed.items())]


def _noisy(
    data: PhraseDataModule,
    split: str | None,
    noise: NoiseSettings,
    trained: Run,
    held: contextlib.ExitStack,
) -> PhraseDataModule:
    """The songs of a split with noise, and no others; their files are removed with ``held``."""
    say(f"noise: {', '.join(f'{key}={value:g}' for key, value in noise.changed.items())}")
    folder = Path(held.enter_context(TemporaryDirectory(prefix="midigenre-noise-")))
    with progress_bars() as progress:
        shards = noisy_songs(data.shards, data.rows(split), noise, folder, progress)
    return PhraseDataModule(shards, **{**trained.data, "fold": None, "protocol": None})


def class_maps(shards: ShardSet, trained: Run) -> dict[str, Longs]:
    """The run's class index for each class of the songs; UNKNOWN for one without a song.

    Raises:
        UserError: Songs have classes that the run does not know; the message names all of them.
    """
    maps, remedies, knows = {}, [], []
    indices = shards.label_indices()
    # These songs are usable again once the class of their copies is left out.
    conflicts = [
        row for row in read_csv(shards.folder / "refused.csv") if row["reason"] == "label_conflict"
    ]
    for label, names in shards.labels.classes.items():
        known = trained.labels.classes.get(label)
        if known is None or label not in trained.classifier.label_heads():
            continue
        used = [names[i] for i in np.unique(indices[label]) if i != UNKNOWN]
        used += sorted({row[label] for row in conflicts} - {*used, ""})
        unknown = [name for name in used if name not in known]
        if unknown:
            knows.append(f"{label} {', '.join(known)}")
            remedies += [
                shlex.quote(f"labels.map.{label}.{n}={_likely(n, known)}") for n in unknown
            ]
        maps[label] = np.array([known.index(n) if n in known else UNKNOWN for n in names], np.int64)
    if remedies:
        raise UserError(
            f"{shards.folder}: classes that this run does not know. Map each to one that it does "
            f"({'; '.join(knows)}), or leave it out with =null: {' '.join(remedies)}"
        )
    return maps


def _likely(name: str, known: Sequence[str]) -> str:
    """A class that the name may mean, else null."""
    spelt = {k.casefold(): k for k in known}
    near = difflib.get_close_matches(name.casefold(), spelt, 1)
    return spelt[near[0]] if near else "null"
