"""``midigenre tune``: the settings of ``train`` that validate best, found by trials (Optuna).

A trial is a training run without a test, in ``tune/<name>/<number>/``. A study may be stopped at
any time, and several processes or machines may work on it: the same command line resumes the trials
that were interrupted, begins further ones, and tests the best one when all have ended.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from filelock import FileLock, Timeout
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Timer
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from rich.console import Console
from rich.markup import escape

from midigenre.build import plain
from midigenre.checks import check_one_device, protocol_of
from midigenre.commands.console import progress_bars, say, warn
from midigenre.commands.hydra_job import one_line, quoted
from midigenre.commands.sweep import note_failure, train_job
from midigenre.errors import StoppedError, UserError
from midigenre.evaluation.figures import (
    BLUE,
    FAINT,
    GRID,
    INK,
    RED,
    new_figure,
    save,
    small_axes,
    titles,
)  # fmt: skip
from midigenre.files import read_json, whole, write_csv, write_json
from midigenre.run import RunFolder, differing
from midigenre.tasks.callbacks import PRUNED, TRIAL
from midigenre.wording import plural

STUDY = "study.json"
"""In a study's folder: what its trials have in common, and what they try."""

REASON = "reason"
"""Attribute of a trial: why it failed."""

ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
"""States of trials that are not run again."""

DIRECTIONS: dict[str, Literal["maximize", "minimize"]] = {"max": "maximize", "min": "minimize"}
"""By ``callbacks.checkpoint.mode``."""

_OWN = ("search", "n_trials", "timeout", "storage", "name")
_ELSEWHERE = ("home", "n_workers", "debug", "hydra")  # of this machine, not of the study
_STARTUP = 5  # trials that end before others are pruned
_WARMUP = 2  # the first validation says little of the last
_HOPELESS = 3  # first trials that fail: the fault is in what they have in common


def run_tune(line: argparse.Namespace) -> int:
    """Runs the trials of a study that are missing, and tests the best one.

    Args:
        line: The command line.

    Returns:
        The exit status.

    Raises:
        UserError: A setting is not usable, the folder has another study, or no trial has succeeded.
        StoppedError: Ctrl-C.
    """
    if line.paths:
        raise UserError(f"tune takes no paths after --, got {line.paths[0]!r}; set corpus.root=DIR")
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    parser = OverridesParser.create(hydra.config_loader)
    given = parser.parse_overrides(line.overrides)
    fixed = [o for o in given if not o.is_sweep_override()]
    cfg = compose("tune", [str(o.input_line) for o in fixed], return_hydra_config=True)
    limit = _checked(cfg)
    search = _search(cfg)
    common = [o for o in fixed if o.key_or_group.partition(".")[0] not in _OWN]
    if deletes := [str(o.input_line) for o in common if o.is_delete()]:
        raise UserError(f"{deletes[0]}: a study cannot take a setting away; give it a value")
    space = space_of(search, given, parser)
    for example in examples_of(space):  # before there is a folder
        compose("train", [*(str(o.input_line) for o in common), *example])
    name = cfg.name
    if name is None:
        name = "-".join([search.get("name", "tune"), cfg.hydra.runtime.choices.corpus])
    folder = Path(os.path.relpath(Path(cfg.home) / "tune" / name))
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    # What a resumed trial reports once more.
    warnings.filterwarnings("ignore", "The reported value is ignored")
    overrides = [*(str(o.input_line) for o in common), f"name={quoted(name)}"]
    study = Study(folder, _optuna(cfg, name, folder), space, overrides, cfg.seed, not cfg.storage)
    own = [o for o in common if o.key_or_group.partition(".")[0] not in _ELSEWHERE]
    about = {
        "overrides": [str(o.input_line) for o in own],
        "space": {key: setting.text for key, setting in space.items()},
        "when": search.get("when") or {},
    }
    with FileLock(folder / ".lock"):
        _keep(study, about)
    deadline = math.inf if limit is None else time.monotonic() + limit
    _run_trials(study, cfg.n_trials, deadline)
    with FileLock(folder / ".finish.lock"):  # of processes that end together, one tests
        return _finish(study, own, parser)


def _checked(cfg: DictConfig) -> float | None:
    """Rejects what no study can be of; returns its seconds, None for no limit."""
    if cfg.resume is not None:
        raise UserError("resume= continues one run; the command line that began a study resumes it")
    if not isinstance(cfg.n_trials, int) or cfg.n_trials < 1:
        raise UserError(f"n_trials={cfg.n_trials} must be a whole number, 1 or more")
    if (protocol := protocol_of(cfg)) is not None:
        raise UserError(
            f"protocol={protocol.name}: a study chooses by the validation songs of one split; "
            "leave it out, and cross-validate the settings that it ends with"
        )
    choices = cfg.hydra.runtime.choices
    if choices.get("sweep") not in (None, "null"):
        raise UserError(f"sweep={choices.sweep}: a sweep trains all its values; leave it out")
    if choices["hydra/launcher"] != "basic":
        raise UserError(
            f"hydra/launcher={choices['hydra/launcher']}: a study has one trial at a time; start "
            "the command several times, and they share its trials"
        )
    check_one_device(cfg, "each trial has one device; set trainer.devices=1")
    try:
        return None if cfg.timeout is None else Timer(str(cfg.timeout)).time_remaining()
    except (MisconfigurationException, ValueError) as error:
        raise UserError(
            f"timeout={cfg.timeout}: write days:hours:minutes:seconds, as 00:02:30:00"
        ) from error


def _optuna(cfg: DictConfig, name: str, folder: Path) -> optuna.Study:
    """The study as Optuna has it, in the file or the database."""
    try:
        storage: BaseStorage
        if cfg.storage is None:
            storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
        else:
            storage = RDBStorage(cfg.storage)
        return optuna.create_study(
            storage=storage,
            study_name=name,
            load_if_exists=True,
            direction=DIRECTIONS[cfg.callbacks.checkpoint.mode],
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_STARTUP, n_warmup_steps=_WARMUP),
        )
    except Exception as error:  # of any database's driver
        where = folder / "journal.log" if cfg.storage is None else f"storage={cfg.storage}"
        # Passwords stay out of the console and of logs.
        said = re.sub(r"//[^@/\s]*@", "//...@", f"{where}: {one_line(error)}")
        raise UserError(said) from error


def _search(cfg: DictConfig) -> dict[str, Any]:
    """``conf/search``: its name, ``params`` and ``when``; empty without one."""
    search = plain(cfg.search) if "search" in cfg else {}
    if unknown := search.keys() - {"name", "params", "when"}:
        raise UserError(f"search.{min(unknown)}: a search has params, when and a name")
    for key in ("params", "when"):
        of = search.get(key) or {}
        if not isinstance(of, dict) or (
            key == "when" and not all(isinstance(values, dict) for values in of.values())
        ):
            raise UserError(f"search.{key}={of}: write it as conf/search/classifier.yaml does")
    return search


def _keep(study: Study, about: Mapping[str, Any]) -> None:
    """Notes what a study is of, or rejects that of another one.

    Raises:
        UserError: Its folder or its database says something else.
    """
    path = study.folder / STUDY
    noted = study.optuna.user_attrs.get("about")
    then = read_json(path) if noted is None and path.is_file() else noted
    if then is None:
        study.optuna.set_user_attr("about", about)
    elif then != about:
        first = (differing(then["space"], about["space"]) or differing(then, about))[0]
        raise UserError(
            f"{study.folder} has another study ({first}); give name=NEW, or the settings that it "
            "was begun with"
        )
    write_json(path, about)


def _run_trials(study: Study, n_trials: int, deadline: float) -> None:
    """Runs trials until there are enough or the time is up.

    Raises:
        UserError: The first ones have all failed.
    """
    # Not the console of the trials, whose lines go to a file.
    screen = Console(file=sys.stderr, width=None if sys.stderr.isatty() else 200)
    best = study.best
    failed: list[FrozenTrial] = []  # since this command began
    with progress_bars(screen) as progress:
        while True:
            ended = study.trials(*ENDED)
            note = "" if best is None else f"best {best.value:.4f} (trial {best.number})"
            progress("trials", len(ended), n_trials, note)
            with study.next_trial(n_trials, deadline) as trial:
                if trial is None:
                    return
                study.run(trial)
            frozen = study.optuna.trials[trial.number]
            _write_trials(study)
            best = study.best  # which another process may have found
            if frozen.state == TrialState.FAIL:
                failed.append(frozen)
                why = frozen.user_attrs[REASON]
                if best is None and len(failed) == _HOPELESS:
                    raise UserError(
                        f"{study.folder}: {_HOPELESS} trials failed and none succeeded; the last: "
                        f"{why}"
                    )
                shown = f"[red]failed:[/] {escape(why)}"
            elif best is not None and best.number == frozen.number:
                shown = f"best so far, {best.value:.4f}"
            else:
                continue
            params = escape(" ".join(f"{k}={_shown(v)}" for k, v in frozen.params.items()))
            screen.print(
                f"trial {frozen.number}: {shown}  {params}", highlight=False, soft_wrap=True
            )


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else _spelt(value)


def _finish(study: Study, recipe: Sequence[Override], parser: OverridesParser) -> int:
    """Writes the study's files and tests the best trial, unless others are running still."""
    # In this order: where none is running, the best one stays it.
    n_running, best = len(study.trials(TrialState.RUNNING)), study.best
    _write_trials(study)
    if best is None:
        raise UserError(f"{study.folder}: no trial was trained to its end; see its trials.csv")
    counts = {state: len(study.trials(state)) for state in ENDED}
    params = " ".join(f"{key}={_shown(value)}" for key, value in best.params.items())
    say(
        f"{plural(sum(counts.values()), 'trial')}, {counts[TrialState.PRUNED]} pruned, "
        f"{counts[TrialState.FAIL]} failed; the best is trial {best.number}, {best.value:.4f}: "
        f"{params}"
    )
    values = [f"{key}={_spelt(value)}" for key, value in best.params.items()]
    about = f"Trial {best.number} of {study.folder}, {best.value:.4f} on the validation songs"
    with whole(study.folder / "experiment" / "best.yaml") as part:
        part.write_text(as_experiment([*recipe, *parser.parse_overrides(values)], about))
    save(study_figure(study), study.folder / "study.png")
    run = study.run_folder(best.number)
    if n_running:
        where = "in another process" if study.is_local else "elsewhere"
        say(f"{plural(n_running, 'trial')} still running {where}: the last to end tests the best")
    elif not run.path.is_dir():
        say(f"{run.path} is on another machine; test it there with: {run.test_command}")
    elif not run.tested:
        for trial in study.trials(TrialState.COMPLETE):
            if study.run_folder(trial.number).tested:
                warn(f"trial {trial.number} was tested before: this is one more look at the songs")
                break
        say(f"testing trial {best.number}, once")
        study.test(best)
    paths = " ".join(o for o in study.overrides if o.startswith("hydra.searchpath="))
    where = f'{study.folder} "{paths}"' if paths else str(study.folder)
    say(f"train it again with: midigenre train -cd {where} experiment=best seed=1")
    print(study.folder)
    return 0


def _write_trials(study: Study) -> None:
    """``trials.csv``: what each trial tried, and how it ended."""
    rows = []
    for trial in study.trials():
        cost = study.run_folder(trial.number).path / "cost.json"
        seconds = read_json(cost)["fit_seconds"] if cost.is_file() else ""
        rows.append(
            {
                "trial": trial.number,
                "state": "failed" if trial.state == TrialState.FAIL else trial.state.name.lower(),
                "score": "" if trial.value is None else trial.value,
                "pruned_after": trial.user_attrs.get(PRUNED) or "",
                "seconds": seconds,
                **{
                    key: _spelt(trial.params[key]) if key in trial.params else ""
                    for key in study.space
                },
                "reason": trial.user_attrs.get(REASON, ""),
            }
        )
    write_csv(study.folder / "trials.csv", rows, list(rows[0]))


def study_figure(study: Study) -> Figure:
    """The scores in order, the share of each setting in how they differ, and each setting alone.

    The shares are Optuna's (fANOVA, Hutter et al. 2014, ICML), which needs scores that differ;
    without them the bars stay empty.
    """
    finished = study.trials(TrialState.COMPLETE)
    best = study.optuna.best_trial
    ring: Any = {"s": 80, "facecolor": "none", "edgecolor": RED, "linewidth": 1.5}
    columns = 4
    rows = -(-len(study.space) // columns)
    figure = new_figure(13, 4 + 2.9 * rows)
    grid = figure.add_gridspec(1 + rows, columns, height_ratios=[1.3] + [1] * rows)

    history = figure.add_subplot(grid[0, :2])
    subtitle = f"line: the best so far; ring: trial {best.number}"
    titles(history, "Validation score of each trial", subtitle)
    stopped = study.trials(TrialState.PRUNED)
    for trials, name, mark, color in (
        (stopped, "pruned", "x", FAINT),
        (finished, "trained to the end", "o", BLUE),
    ):
        numbers = [trial.number for trial in trials]
        history.scatter(numbers, _scores(trials), s=26, label=name, marker=mark, color=color)
    over = np.maximum if study.optuna.direction == StudyDirection.MAXIMIZE else np.minimum
    so_far = over.accumulate(_scores(finished))
    history.step([t.number for t in finished], so_far, where="post", color=BLUE, alpha=0.5)
    history.set_xlabel("trial", color=INK)
    history.xaxis.set_major_locator(MaxNLocator(integer=True))
    if stopped:
        history.legend(
            frameon=False, fontsize=9, labelcolor=INK, loc="lower right", bbox_to_anchor=(1, 1)
        )

    bars = figure.add_subplot(grid[0, 2:])
    subtitle = "share of each setting in how the scores differ (fANOVA)"
    if any(setting.when for setting in study.space.values()):
        subtitle += ", of those that every trial has"
    titles(bars, "What matters", subtitle)
    shares: dict[str, float] = {}
    if len(set(_scores(finished))) > 1:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares = optuna.importance.get_param_importances(study.optuna, evaluator=evaluator)
    drawn = bars.barh(list(shares), list(shares.values()), color=BLUE, height=0.6)
    bars.bar_label(drawn, fmt="{:.0%}", padding=4, fontsize=9, color=INK)
    bars.invert_yaxis()
    bars.set_xticks([])

    panels = []
    for place, (key, setting) in enumerate(study.space.items()):
        panel = figure.add_subplot(grid[1 + place // columns, place % columns], sharey=history)
        panels.append(panel)
        tried = [t for t in finished if key in t.params]
        values: list[Any] = [t.params[key] for t in tried]
        of = setting.distribution
        if isinstance(of, CategoricalDistribution):
            choices = [str(choice) for choice in of.choices]
            values = [choices.index(value) for value in values]
            panel.set_xticks(range(len(choices)), choices)
            panel.set_xlim(-0.5, len(choices) - 0.5)
        elif isinstance(of, IntDistribution):
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        if isinstance(of, (IntDistribution, FloatDistribution)) and of.log:
            panel.set_xscale("log")
        panel.scatter(values, _scores(tried), s=22, color=BLUE, alpha=0.7, linewidth=0)
        if best in tried:
            panel.scatter(values[tried.index(best)], _scores([best]), **ring)
        small_axes(panel, key)
    history.scatter(best.number, _scores([best]), **ring)
    for axes in (history, bars, *panels):
        axes.tick_params(length=0, colors=INK, labelsize=9)
        axes.spines[:].set_visible(False)
        axes.spines["bottom"].set(visible=True, color=GRID)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
    bars.grid(False)
    return figure


def _scores(trials: Sequence[FrozenTrial]) -> list[float]:
    return [float(trial.value) for trial in trials if trial.value is not None]


def as_experiment(overrides: Sequence[Override], about: str) -> str:
    """Overrides as a file of ``conf/experiment``.

    Args:
        overrides: Of groups and settings; later ones win.
        about: Its comment.
    """
    known = GlobalHydra.instance().config_loader().get_group_options("", ObjectType.GROUP)
    groups = {o.key_or_group: o for o in overrides if o.key_or_group in known}
    base = groups.pop("experiment", None)
    defaults: list[Any] = [] if base is None else [base.value()]
    defaults += [{f"override /{key}": o.value()} for key, o in groups.items()]
    settings = OmegaConf.create()
    for o in overrides:
        if o.key_or_group not in groups and o.key_or_group != "experiment":
            OmegaConf.update(settings, o.key_or_group, o.value())
    text = OmegaConf.to_yaml(OmegaConf.create({"defaults": [*defaults, "_self_"]}))
    text += OmegaConf.to_yaml(settings) if settings else ""
    return f"# @package _global_\n# {about}\n{text}"


@dataclass(frozen=True)
class Setting:
    """A setting or group of ``train``, and the values that it may take.

    Attributes:
        text: As it was written.
        distribution: The values; those of a choice as the command line has them.
        when: Settings that must have one of some values for this one to be tried.
    """

    text: str
    distribution: BaseDistribution
    when: Mapping[str, tuple[str, ...]]

    @classmethod
    def parse(cls, override: Override, when: Mapping[str, Any]) -> Setting:
        """From ``interval(...)``, ``range(...)`` or ``choice(...)`` of Hydra's grammar.

        Raises:
            UserError: It is none of these, or its bounds make no interval.
        """
        values, text = override.value(), str(override.input_line)
        try:
            if isinstance(values, ChoiceSweep):
                choices = tuple(override.sweep_string_iterator())
                found: BaseDistribution = CategoricalDistribution(choices)
            elif isinstance(values, IntervalSweep):
                found = _numbers(values.start, values.end, None, "log" in values.tags)
            elif isinstance(values, RangeSweep):
                found = _numbers(values.start, list(values.range())[-1], values.step, False)
            else:
                found = CategoricalDistribution((override.get_value_element_as_str(),))
        except (ValueError, IndexError) as error:
            raise UserError(
                f"{text}: {one_line(error)}; write interval(low, high), int(interval(low, high)), "
                "tag(log, interval(low, high)), range(first, end, step) or choice(a, b)"
            ) from error
        conditions = {
            key: tuple(map(_spelt, value if isinstance(value, list) else [value]))
            for key, value in when.items()
        }
        return cls(text.partition("=")[2], found, conditions)

    def applies(self, chosen: Mapping[str, Any]) -> bool:
        """Whether it is tried beside what was chosen before."""
        return all(_spelt(chosen.get(key)) in values for key, values in self.when.items())

    def draw(self, trial: Trial, key: str) -> Any:
        """The value that a trial tries."""
        of = self.distribution
        if isinstance(of, CategoricalDistribution):
            return trial.suggest_categorical(key, of.choices)
        if isinstance(of, IntDistribution):
            return trial.suggest_int(key, of.low, of.high, step=of.step, log=of.log)
        assert isinstance(of, FloatDistribution)
        return trial.suggest_float(key, of.low, of.high, step=of.step, log=of.log)

    @property
    def first(self) -> Any:
        """One of its values."""
        of: Any = self.distribution
        return of.choices[0] if isinstance(of, CategoricalDistribution) else of.low


def _numbers(low: Any, high: Any, step: Any, log: bool) -> BaseDistribution:
    if all(isinstance(of, int) for of in (low, high, step or 1)):
        return IntDistribution(low, high, log, 1 if step is None else step)
    return FloatDistribution(low, high, log, step)


def _spelt(value: Any) -> str:
    """A value as Hydra's command line has it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def space_of(
    search: Mapping[str, Any], given: Sequence[Override], parser: OverridesParser
) -> dict[str, Setting]:
    """The settings to try, each after those that it depends on.

    Args:
        search: ``params`` and ``when`` of ``conf/search``.
        given: The command line; it replaces them, with several values to try or with one.
        parser: Hydra's.

    Raises:
        UserError: There is none, one is no range of values, or one depends on what is not tried.
    """
    params, when = search.get("params") or {}, search.get("when") or {}
    own = parser.parse_overrides([f"{key}={values}" for key, values in params.items()])
    overrides = {o.key_or_group: o for o in own}
    overrides |= {
        o.key_or_group: o for o in given if o.is_sweep_override() or o.key_or_group in overrides
    }
    space = {key: Setting.parse(o, when.get(key) or {}) for key, o in overrides.items()}
    if not space:
        known = ", ".join(GlobalHydra.instance().config_loader().get_group_options("search"))
        raise UserError(
            f"nothing to try: give search=NAME ({known}) or optim.lr=interval(1e-4,1e-2)"
        )
    for key in when:
        if missing := [other for other in (key, *when[key]) if other not in space]:
            tried = ", ".join(space)
            raise UserError(f"search.when.{key}: {missing[0]} is not among what is tried ({tried})")
    try:
        ordered = TopologicalSorter(
            {key: list(of.when) for key, of in space.items()}
        ).static_order()
        return {key: space[key] for key in ordered}
    except CycleError as error:
        raise UserError(f"search.when: {' waits for '.join(error.args[1])}") from error


def examples_of(space: Mapping[str, Setting]) -> Iterator[list[str]]:
    """For each setting overrides with one of its values, and with what it depends on."""

    def example(key: str, value: str) -> Iterator[str]:
        for other, values in space[key].when.items():
            yield from example(other, values[0])
        yield f"{key}={value}"

    for key, setting in space.items():
        yield list(example(key, _spelt(setting.first)))


def sampler_of(seed: int, number: int) -> optuna.samplers.BaseSampler:
    """The sampler of one trial.

    It depends on the trial's number, not on the process: neither a study that is resumed nor one
    with several processes draws the same values again.
    """
    (own,) = np.random.SeedSequence([seed, number]).generate_state(1).tolist()
    return optuna.samplers.TPESampler(
        n_startup_trials=_STARTUP, multivariate=True, group=True, seed=own
    )


def suggest(trial: Trial, space: Mapping[str, Setting]) -> dict[str, Any]:
    """What a trial tries: a value for each setting that applies; the same whenever it is asked."""
    chosen: dict[str, Any] = {}
    for key, setting in space.items():
        if setting.applies(chosen):
            chosen[key] = setting.draw(trial, key)
    return chosen


@dataclass(frozen=True)
class Study:
    """A study in its folder.

    Attributes:
        folder: ``tune/<name>``.
        optuna: What Optuna knows of it: the trials and their scores.
        space: What is tried.
        overrides: What all trials have in common, as the command line has it.
        seed: Of the sampler: a trial depends on it, on its own number, and on those that ended
            before.
        is_local: Whether its storage lies in the folder, with the locks of all its trials.
    """

    folder: Path
    optuna: optuna.Study
    space: Mapping[str, Setting]
    overrides: Sequence[str]
    seed: int
    is_local: bool = True

    def run_folder(self, number: int) -> RunFolder:
        """The folder of a trial's training."""
        return RunFolder(self.folder / str(number))

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials in some states; in all if none is given."""
        return self.optuna.get_trials(deepcopy=False, states=states or None)

    @property
    def best(self) -> FrozenTrial | None:
        """The trial with the best validation score of those that were trained to their end."""
        return self.optuna.best_trial if self.trials(TrialState.COMPLETE) else None

    @contextlib.contextmanager
    def next_trial(self, n_trials: int, deadline: float) -> Iterator[Trial | None]:
        """One that was interrupted, else a new one, kept from other processes; None at the end."""
        with contextlib.ExitStack() as held:
            with FileLock(self.folder / ".lock"):
                trial = self._interrupted(held)
                if trial is None and len(self.trials()) < n_trials and time.monotonic() < deadline:
                    trial = self.optuna.ask()
                    held.enter_context(self._lock(trial.number).acquire(timeout=0))
            yield trial

    def _interrupted(self, held: contextlib.ExitStack) -> Trial | None:
        for frozen in self.trials(TrialState.RUNNING):
            lock = self._lock(frozen.number)
            # In a database it may run on a machine that has a folder of its own.
            if not (self.is_local or Path(lock.lock_file).is_file()):
                continue
            with contextlib.suppress(Timeout):  # another process has it
                held.enter_context(lock.acquire(timeout=0))
                return Trial(self.optuna, frozen._trial_id)
        return None

    def _lock(self, number: int) -> FileLock:
        return FileLock(self.folder / f".{number}.lock")

    def run(self, trial: Trial) -> None:
        """Trains a trial and tells Optuna how it ended."""
        self.optuna.sampler = sampler_of(self.seed, trial.number)
        values = suggest(trial, self.space)
        outcome = self._train(trial.number, values, TrialJob(trial), test=False)
        if not isinstance(outcome, str) and not math.isfinite(outcome):
            outcome = f"the best validation score is {outcome}"
        if isinstance(outcome, str):
            trial.set_user_attr(REASON, outcome)
            self.optuna.tell(trial, state=TrialState.FAIL)
        elif self.optuna.trials[trial.number].user_attrs.get(PRUNED):
            self.optuna.tell(trial, state=TrialState.PRUNED)
        else:
            self.optuna.tell(trial, outcome)

    def test(self, trial: FrozenTrial) -> None:
        """Tests a trial that has been trained, and shows the scores.

        Raises:
            UserError: It cannot be tested.
        """
        outcome = self._train(trial.number, trial.params, TrialJob(None), test=True)
        if isinstance(outcome, str):
            raise UserError(f"{self.run_folder(trial.number).path} cannot be tested: {outcome}")

    def _train(
        self, number: int, values: Mapping[str, Any], job: TrialJob, *, test: bool
    ) -> float | str:
        """Trains, resumes or tests a trial in its folder; its score, or why it failed."""
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        fixed = [o.partition("=")[0].lstrip("+") for o in (*self.overrides, "test=")]
        exclude = ",".join(map(quoted, fixed))
        (((done,),),) = (
            hydra.multirun(
                "train",
                job,
                [
                    *self.overrides,
                    *(f"{key}={_spelt(value)}" for key, value in values.items()),
                    f"test={_spelt(test)}",
                    "hydra.mode=MULTIRUN",
                    f"hydra.sweep.dir={quoted(str(self.folder))}",
                    f"hydra.sweep.subdir='{number}'",
                    f"hydra.job.config.override_dirname.exclude_keys=[{exclude}]",
                ],
            ),
        )
        (self.folder / "multirun.yaml").unlink(missing_ok=True)  # Hydra's, of this trial alone
        outcome: float | str = done.return_value
        return outcome


@dataclass(frozen=True)
class TrialJob:
    """What Hydra runs for a trial.

    Attributes:
        trial: The trial, which validations are reported to; None to test one.
    """

    trial: Trial | None

    def __call__(self, cfg: DictConfig) -> float | str:
        """Trains.

        Returns:
            The best validation score, or why it failed.
        """
        run = RunFolder(Path(HydraConfig.get().runtime.output_dir))
        if self.trial is not None and run.finished:  # killed before Optuna was told
            return run.best_score[1]
        token = TRIAL.set(self.trial)
        try:
            return train_job(run, cfg, (), to_file=self.trial is not None)
        except StoppedError as error:
            print("midigenre: stopped; the same command line resumes the study", file=sys.stderr)
            raise SystemExit(error.status) from error
        except (Exception, SystemExit) as error:
            return note_failure(run, error)
        finally:
            TRIAL.reset(token)
