"""``midigenre COMMAND [hydra overrides] [-- PATH ...]``.

Hydra composes the config; this file only dispatches, quotes paths and words errors. It leaves
``sys.argv`` alone: Lightning starts the further processes of a distributed run from it.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midigenre.registry import conf_dir

if TYPE_CHECKING:
    from midigenre.commands.sweep import Sweep

COMMANDS = {
    "prepare": "corpus to shards",
    "inspect": "one song's tokens in words, as MIDI and as piano roll",
    "train": "prepare if needed, train, test the best checkpoint",
    "evaluate": "a run on its own test set or on any labelled corpus",
    "predict": "labels of MIDI files, as JSON lines",
    "generate": "pieces under a genre or emotion, or continuing a file, as MIDI and piano rolls",
    "judge": "control, distance, structure and novelty of generated music, with a page to listen",
    "compare": "the table of runs: settings that differ, scores, cost",
}

TEXT_KEYS = (
    "corpus.root", "corpus.path", "corpus.group_pattern", "corpus.url", "run", "resume", "shards",
    "path", "song", "out", "home", "csv", "prime", "init_from", "soundfont", "judge", "clean",
    "prepare.folder", "prepare.scheduler", "genre", "emotion",
)  # fmt: skip
"""Paths and names of classes: any text a shell can pass, which Hydra's grammar is kept away from.

``conditions.LABEL`` of ``generate`` names a class too.
"""

LABEL_MAP = "labels.map."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The exit status: 0, 2 on a user's error (one line on stderr), 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if arguments[0] == "--version":
        from midigenre import __version__

        print(f"midigenre {__version__}")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        return _fail(f"no command {command!r}; {hint}")
    paths: list[str] = []
    if "--" in rest:
        cut = rest.index("--")
        rest, paths = rest[:cut], rest[cut + 1 :]
    return _dispatch(command, rest, paths)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "midigenre COMMAND [overrides] [-- PATH ...]",
            "",
            *lines,
            "",
            "midigenre COMMAND --help lists the settings, --cfg job shows the composed config;",
            "-m runs a sweep over comma-separated values. midigenre --version prints the version.",
        ]
    )


def quoted(text: str) -> str:
    """A string literal of Hydra's override grammar that stands for exactly ``text``.

    Backslashes double before a quote (Hydra's rule) and before ``${`` (OmegaConf's, which then
    does not take it for an interpolation).
    """
    from midigenre.run import literal

    text = re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), literal(text))
    return f"'{text}'"


def overrides_of(arguments: Sequence[str]) -> list[str]:
    """The arguments with the values of :data:`TEXT_KEYS` quoted for Hydra.

    ``ckpt`` is a path unless it is ``best`` or ``last``; ``null`` stays null.
    """
    out = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key.startswith(LABEL_MAP):
            out.append(_label_override(key.removeprefix(LABEL_MAP), value))
            continue
        is_text = key in TEXT_KEYS or key.lstrip("+").startswith("conditions.")
        is_text |= key in ("ckpt", "judge_ckpt") and value not in ("best", "last")
        if equals and is_text and value != "null":
            argument = f"{key}={quoted(value)}"
        out.append(argument)
    return out


def _label_override(name: str, value: str) -> str:
    """``labels.map.LABEL.CLASS=NAME`` for Hydra, with any text as CLASS and NAME."""
    from midigenre.commands.hydra_job import hydra_key

    label, _, source = name.partition(".")
    if not source:
        return f"++{LABEL_MAP}{name}={value}"
    text = "null" if value == "null" else quoted(value)
    return f"++labels.map={{{label}: {{{hydra_key(source)}: {text}}}}}"


def _dispatch(command: str, arguments: Sequence[str], paths: Sequence[str]) -> int:
    # Imported here so that `midigenre` and `--version` answer at once.
    from hydra._internal.utils import _run_hydra, get_args_parser
    from hydra.errors import HydraException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    from midigenre.commands.hints import help_of, option, worded
    from midigenre.commands.hydra_job import Job, SweepJob
    from midigenre.errors import UserError

    debug = any(a.lower() in ("debug=true", "debug=1") for a in arguments)
    overrides = overrides_of(arguments)
    # Hydra then lets exceptions through instead of wording them itself.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    parser = get_args_parser()
    try:
        args, unknown = parser.parse_known_args(overrides)
    except SystemExit as error:
        return int(error.code or 0)
    if args.experimental_rerun is not None:  # a pickled config, whose reading runs what it says
        return _fail("--experimental-rerun is not taken; go on with a run by train resume=RUN")
    failure: list[BaseException] = []
    job = Job(command, tuple(paths))

    def single(cfg: DictConfig) -> Any:
        # Hydra reports a failed job in words of its own: keep the exception for ourselves.
        try:
            return job(cfg)
        except BaseException as error:
            failure.append(error)
            return None

    task: Callable[[DictConfig], Any] = job if args.multirun else single
    sweep = None
    expected = (UserError, HydraException, OmegaConfBaseException, OSError)
    try:
        if unknown:
            raise UserError(option(unknown[0], command, args))
        if args.help:
            print(help_of(command, args))
            return 0
        with contextlib.ExitStack() as held:
            if command == "train" and not (args.cfg or args.info):
                sweep = _begin(args, held)
                task = task if sweep is None else SweepJob(tuple(paths))
            try:
                _run_hydra(
                    args=args,
                    args_parser=parser,
                    task_function=task,
                    config_path=str(conf_dir()),
                    config_name=command,
                )
            except Exception as error:
                if sweep is None or isinstance(error, expected):
                    raise
                # A launcher gives up when one of its processes is killed; jobs keep their errors.
                if debug:
                    traceback.print_exception(error)
                _fail(f"the launcher stopped: {worded(error, command, args, tuple(COMMANDS))}")
            if failure:
                raise failure[0]
            return 0 if sweep is None else _end(sweep, args)
    except SystemExit as error:  # Hydra's --info
        return int(error.code or 0)
    except KeyboardInterrupt:
        goes_on = "" if sweep is None else "; the same command line goes on with the sweep"
        return _fail(f"interrupted{goes_on}", 130)
    except BrokenPipeError:  # for instance `midigenre predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except expected as error:
        if debug:
            traceback.print_exception(error)
            return 2
        return _fail(worded(error, command, args, tuple(COMMANDS)), getattr(error, "status", 2))


def _begin(args: Any, held: contextlib.ExitStack) -> Sweep | None:
    """Gives what ``train`` starts, a run or a sweep, a folder of its own.

    Its settings are appended to the command line's.

    Args:
        args: The command line as Hydra has parsed it.
        held: Closed at the end: unlocks the sweep's folder, removes one in which nothing began.

    Returns:
        The sweep that is asked for, by ``-m`` or by ``sweep=``; None for one run.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.types import RunMode

    from midigenre.commands.hints import tree
    from midigenre.commands.hydra_job import is_first_process
    from midigenre.commands.sweep import plan
    from midigenre.run import RunFolder, claim

    # An earlier command of this process must not name this one's folder.
    HydraConfig.instance().cfg = None
    sweep: Sweep | None = None
    settings: dict[str, Any] = {}
    with tree(args) as hydra:
        cfg = hydra.compose_config(
            "train", args.overrides, RunMode.MULTIRUN, validate_sweep_overrides=False
        )
        if args.multirun or cfg.hydra.mode == RunMode.MULTIRUN:
            planned = plan(cfg, args.overrides, OverridesParser.create(hydra.config_loader))
            sweep = held.enter_context(planned.begun())
            settings = sweep.settings
        else:
            cfg.hydra.mode = RunMode.RUN
            HydraConfig.instance().set_config(cfg)
            folder = Path(cfg.hydra.run.dir)
            # Only a run's own folder: Hydra would make any other, or write into it.
            if cfg.resume is not None and (run := RunFolder(Path(cfg.resume))).has_config:
                run.check_entries()  # Hydra opens its log there
                settings = {"hydra.run.dir": str(cfg.resume)}
            # The further processes of a distributed run are given their folder by the first, and a
            # person who names one that is there means that one.
            elif is_first_process() and not (_is_set("hydra.run.dir", args) and folder.is_dir()):
                own = claim(folder)
                held.callback(own.discard_empty)
                settings = {"hydra.run.dir": str(own.folder)}
            HydraConfig.instance().cfg = None
    for key, value in settings.items():
        args.overrides.append(f"{key}={_literal(value)}")
    return sweep


def _is_set(key: str, args: Any) -> bool:
    return any(override.partition("=")[0].lstrip("+") == key for override in args.overrides)


def _literal(value: Any) -> str:
    """A value in Hydra's override grammar."""
    if isinstance(value, list):
        return f"[{','.join(map(_literal, value))}]"
    return quoted(value) if isinstance(value, str) else str(value)


def _end(sweep: Sweep, args: Any) -> int:
    """Reports a sweep; the exit status."""
    from midigenre.commands.hints import tree
    from midigenre.commands.sweep import report

    with tree(args):
        return 0 if report(sweep) else 2


def _fail(message: str, status: int = 2) -> int:
    sys.stdout.flush()
    print(f"midigenre: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
