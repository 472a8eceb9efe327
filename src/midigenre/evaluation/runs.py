"""Finished runs as they lie on disk, to be compared, and what they started from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midigenre.errors import UserError
from midigenre.files import read_json
from midigenre.run import HOLDOUT, RunFolder, flatten, protocol_name, settings_of

_CHAIN = 8  # no recipe has so many stages; a folder that starts from itself ends here


@dataclass(frozen=True)
class Lineage:
    """What a run started from, so that seeds of one recipe are seen as such.

    Each seed of a recipe that pretrains starts from a pretrained run of its own (``init_from``).
    Those runs differ by their seeds alone, and so do the ones that started from them.

    Attributes:
        recipe: Equal for runs that started from trainings of the same settings, whatever their
            seeds.
        seeds: Seeds of those trainings, the latest first.
    """

    recipe: str
    seeds: tuple[Any, ...]


@dataclass(frozen=True)
class RunRecord:
    """A finished run.

    Attributes:
        folder: Where it lies.
        settings: Its settings, flat; see
            :func:`~midigenre.run.settings_of`.
        evaluation: Content of ``evaluation.json``.
        cost: Content of ``cost.json``; ``parameters`` alone for runs from before there was one.
        test_set: Equal for runs that were tested on the same songs and phrases.
        finished: When, in nanoseconds since the epoch.
        lineage: What it started from; None if from nothing, or from what cannot be read any more.
    """

    folder: Path
    settings: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    cost: Mapping[str, Any]
    test_set: str
    finished: int
    lineage: Lineage | None = None

    @property
    def configuration(self) -> str:
        """Equal for runs that differ by seeds alone, also those of what they started from."""
        settings = {k: v for k, v in self.settings.items() if k != "seed"}
        if self.lineage is not None:
            settings["init_from"] = self.lineage.recipe
        return json.dumps([settings, self.test_set], sort_keys=True)

    @property
    def seeds(self) -> tuple[Any, ...]:
        """Its seed, and those of what it started from."""
        earlier = () if self.lineage is None else self.lineage.seeds
        return (self.settings.get("seed"), *earlier)


@dataclass(frozen=True)
class Unfinished:
    """A run that has no scores to compare, and why.

    Attributes:
        folder: The run's folder.
        reason: Why, in words.
        finished: Whether it is another kind of model, trained to its end; the reason is what it
            reached.
    """

    folder: Path
    reason: str
    finished: bool = False


def find_runs(paths: Iterable[Path | str]) -> tuple[list[RunRecord], list[Unfinished]]:
    """The runs at or below some folders, each once, in the order of their paths.

    Raises:
        UserError: A path is no folder, or there is no run in it.
    """
    runs: dict[Path, RunRecord] = {}
    unfinished: dict[Path, Unfinished] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; give runs or folders of runs")
        found = False
        for folder in _folders(path):
            found = True
            try:
                runs[folder.resolve()] = _read(folder)
            except _UnfinishedError as error:
                unfinished[folder.resolve()] = Unfinished(folder, str(error), error.finished)
        if not found:
            raise UserError(
                f"{path} holds no run (a folder with config.yaml); trained runs lie in "
                "runs/<name>/<when>"
            )
    return list(runs.values()), list(unfinished.values())


class _UnfinishedError(Exception):
    """Why a folder cannot be compared."""

    def __init__(self, reason: str, finished: bool = False) -> None:
        super().__init__(reason)
        self.finished = finished


def _folders(path: Path) -> Iterator[Path]:
    for place, below, files in os.walk(path):
        if "config.yaml" in files or "failed.txt" in files:
            below.clear()  # loggers keep a config.yaml of their own inside
            yield Path(place)
        below.sort()


def _read(folder: Path) -> RunRecord:
    metrics_path, evaluation_path = folder / "metrics.json", folder / "evaluation.json"
    if not (metrics_path.is_file() and evaluation_path.is_file()):
        raise _UnfinishedError(_why(folder))
    try:
        config = RunFolder(folder).config
        evaluation, metrics = read_json(evaluation_path), read_json(metrics_path)
        if "tokens" in evaluation:
            scores = evaluation["tokens"]
            raise _UnfinishedError(
                f"a generator ({scores['nats_per_note']:.3f} nats a note, token accuracy "
                f"{scores['accuracy']:.3f} on the test songs); the table compares classifiers",
                finished=True,
            )
        if "masked" in evaluation:
            nats = evaluation["masked"]["nats_per_note"]
            nats = "" if nats is None else f"{nats:.3f} nats a note, "
            raise _UnfinishedError(
                f"a masked model ({nats}token accuracy {evaluation['masked']['accuracy']:.3f} on "
                "the test songs); the table compares classifiers",
                finished=True,
            )
        cost = {"parameters": metrics["parameters"]}
        if (folder / "cost.json").is_file():
            cost = read_json(folder / "cost.json")
        return RunRecord(
            folder,
            settings_of(config),
            evaluation,
            cost,
            _test_set(config, evaluation),
            metrics_path.stat().st_mtime_ns,
            lineage_of(config),
        )
    except _UnfinishedError:
        raise
    except UserError as error:
        raise _UnfinishedError(str(error)) from error
    except Exception as error:  # whatever a damaged file makes of it: told, not hidden
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise _UnfinishedError(f"cannot be read ({what})") from error


def _why(folder: Path) -> str:
    failed = folder / "failed.txt"
    if failed.is_file():
        lines = failed.read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[0] if lines else "failed without a word"
    return f"did not finish; go on with: midigenre train resume={folder}"


def _test_set(config: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """Text that is equal for equal test sets: what chose the songs, and how many there are."""
    chosen = {key: config.get(key) for key in ("split", "labels")}
    if config.get("shards") is None:
        chosen["corpus"] = config["corpus"]
    else:  # <corpus>-<tokenizer>-<hash>: other tokenizers have other shards of the same songs
        chosen["shards"] = Path(config["shards"]).name.partition("-")[0]
    # The same songs, whatever is taken of them.
    ignored = ("corpus.tracks", "corpus.neutral")
    flat = {k: v for k, v in flatten(chosen) if k not in ignored and v is not None and v != {}}
    if protocol_name(config) != HOLDOUT:
        protocol = config["protocol"]
        # All folds together are all songs, however many there are.
        deals = ("name", "sources") if protocol.get("part") is None else (*protocol,)
        flat |= {f"protocol.{key}": protocol.get(key) for key in deals}
    # Labels may be unknown for some songs; the label with most of them tells how many there are.
    sizes = {
        level: max(levels[level]["n"] for levels in evaluation.values())
        for level in ("phrase", "song")
    }
    return json.dumps([flat, sizes], sort_keys=True)


def lineage_of(config: Mapping[str, Any], chain: int = _CHAIN) -> Lineage | None:
    """What a run started from; None where it did not, or where that run cannot be read any more.

    Args:
        config: The content of its ``config.yaml``.
        chain: How many trainings to follow at most.
    """
    source = config.get("init_from")
    if source is None or not chain:
        return None
    named = Path(source).expanduser()
    # A run's folder, whose best checkpoint it was, or RUN/checkpoints/NAME.ckpt.
    folder, checkpoint = (named.parent.parent, named.name) if named.is_file() else (named, "")
    try:
        before = RunFolder(folder).config
        settings = settings_of(before)
    except Exception:  # moved, deleted, damaged or not ours: the path alone tells it from others
        return None
    seed = settings.pop("seed", None)
    earlier = lineage_of(before, chain - 1)
    seeds: tuple[Any, ...] = (seed,)
    if earlier is not None:
        settings["init_from"], seeds = earlier.recipe, (seed, *earlier.seeds)
    return Lineage(json.dumps([checkpoint, settings], sort_keys=True), seeds)
