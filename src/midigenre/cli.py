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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midigenre.commands.label_names import hydra_key
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

PLUGINS = {
    "hydra/launcher/joblib": "hydra-joblib-launcher",
    "hydra/launcher/submitit_local": "hydra-submitit-launcher",
    "hydra/launcher/submitit_slurm": "hydra-submitit-launcher",
}
"""Configs that come with a plugin of Hydra, and the package that has it."""

PATH_KEYS = (
    "corpus.root", "corpus.path", "corpus.group_pattern", "run", "resume", "shards", "path", "song",
    "out", "home", "csv", "prime", "init_from", "soundfont", "judge", "clean", "corpus.url",
    "prepare.folder", "prepare.scheduler",
)  # fmt: skip
"""Settings that take any text a shell can pass; Hydra's grammar is kept away from them."""

LABEL_MAP = "labels.map."
CLASS_KEYS = ("genre", "emotion")
CONDITIONS = "conditions."
"""Settings of ``generate`` that name a class, whose name is any text too."""


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
            "-m runs a sweep over comma-separated values. midigenre --version tells the version.",
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
    """The arguments with the values of :data:`PATH_KEYS` and class names quoted for Hydra.

    ``ckpt`` is a path unless it is ``best`` or ``last``; ``null`` stays null.
    """
    out = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key.startswith(LABEL_MAP):
            out.append(_label_override(key.removeprefix(LABEL_MAP), value))
            continue
        is_text = key in PATH_KEYS or key in CLASS_KEYS or key.lstrip("+").startswith(CONDITIONS)
        is_text |= key in ("ckpt", "judge_ckpt") and value not in ("best", "last")
        if equals and is_text and value != "null":
            argument = f"{key}={quoted(value)}"
        out.append(argument)
    return out


def _label_override(name: str, value: str) -> str:
    """``labels.map.LABEL.CLASS=NAME`` for Hydra, with any text as CLASS and NAME."""
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

    from midigenre.commands.job import Job, SweepJob
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
    worded = (UserError, HydraException, OmegaConfBaseException, OSError)
    try:
        if unknown:
            raise UserError(_option(unknown[0], command, args))
        with contextlib.ExitStack() as held:
            if command == "train" and not (args.help or args.cfg or args.info):
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
                if sweep is None or isinstance(error, worded):
                    raise
                # A launcher gives up when one of its processes is killed; jobs keep their errors.
                if debug:
                    traceback.print_exception(error)
                _fail(f"the launcher stopped: {_worded(error, command, args)}")
            if failure:
                raise failure[0]
            return 0 if sweep is None else _end(sweep, args)
    except SystemExit as error:  # Hydra's --help and --info
        return int(error.code or 0)
    except KeyboardInterrupt:
        goes_on = "" if sweep is None else "; the same command line goes on with the sweep"
        return _fail(f"interrupted{goes_on}", 130)
    except BrokenPipeError:  # for instance `midigenre predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except worded as error:
        if debug:
            traceback.print_exception(error)
            return 2
        return _fail(_worded(error, command, args), getattr(error, "status", 2))


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

    from midigenre.commands.claims import claim
    from midigenre.commands.job import is_first_process
    from midigenre.commands.sweep import plan
    from midigenre.run import RunFolder

    # An earlier command of this process must not name this one's folder.
    HydraConfig.instance().cfg = None
    sweep: Sweep | None = None
    settings: dict[str, Any] = {}
    with _tree(args) as hydra:
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


@contextlib.contextmanager
def _tree(args: Any) -> Iterator[Any]:
    """Hydra over the config tree and the person's own folder, ``--config-dir``, as for a command.

    Args:
        args: The command line as Hydra has parsed it.

    Raises:
        HydraException: There is no such folder.
    """
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import SearchPathException

    path = create_config_search_path(str(conf_dir().resolve()))
    if args.config_dir is not None:
        own = os.path.abspath(args.config_dir)
        if not os.path.isdir(own):
            raise SearchPathException(f"--config-dir={args.config_dir}: no such folder")
        path.prepend("command-line", f"file://{own}", SearchPathQuery(provider="schema"))
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2("midigenre", path)
    finally:
        GlobalHydra.instance().hydra = before


def _end(sweep: Sweep, args: Any) -> int:
    """Reports a sweep; the exit status."""
    from midigenre.commands.sweep import report

    with _tree(args):
        return 0 if report(sweep) else 2


def _composed(command: str, args: Any, chosen: bool = True) -> tuple[Any, set[str]]:
    """What a command can be given: its settings, with the chosen groups, and its groups."""
    from hydra import compose
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    with _tree(args) as hydra:
        groups = {*hydra.config_loader.list_groups(""), "hydra.searchpath"}
        choices = [o for o in args.overrides if o.partition("=")[0] in groups]
        # A group that does not exist, or one that is swept: the defaults will do.
        for overrides in (choices, []) if chosen else ([],):
            with contextlib.suppress(HydraException):
                cfg = compose(command, overrides, return_hydra_config=True)
                return cfg, {str(group) for group in cfg.hydra.runtime.choices}
    return OmegaConf.create({}), set()


_SYNONYMS = {
    "learning_rate": "lr", "hidden_size": "d_model", "max_length": "max_tokens", "gpus": "devices",
    "wd": "weight_decay",
}  # fmt: skip
"""Settings of other programs whose names have no word in common with ours."""


def _nearest(key: str, cfg: Any, groups: set[str]) -> list[str]:
    """At most three settings or groups that may be meant, the likeliest first.

    They are told by their last part, letter by letter and word by word: ``epochs`` is
    ``trainer.max_epochs``.
    """
    from omegaconf import OmegaConf

    from midigenre.evaluation.settings import flatten

    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    hydra = {"hydra": plain.pop("hydra", {})}
    known = flatten(hydra if key.startswith("hydra.") else plain)
    parent, _, leaf = key.rpartition(".")
    words = _long_words(leaf)
    scores: dict[str, float] = {}
    groups = {group for group in groups if "hydra" not in group}
    for setting in {*(name for name, _ in known), *plain, *groups}:
        above, _, name = setting.rpartition(".")
        alike = difflib.SequenceMatcher(None, name, leaf).ratio()
        if above == parent and alike > 0.6:
            alike += 0.3
        if name in (leaf, _SYNONYMS.get(leaf)):
            alike = 2
        elif shared := words & _long_words(name):
            alike = max(alike, 0.6 + 0.4 * len(shared) / len(words | _long_words(name)))
        if alike > 0.7 and name != "_target_":
            scores[setting] = alike
    likeliest = sorted(scores, key=lambda setting: (-scores[setting], setting))[:3]
    return [setting for setting in likeliest if scores[setting] > scores[likeliest[0]] - 0.2]


def _long_words(name: str) -> set[str]:
    return {word for word in name.split("_") if len(word) > 1}


def _instead(key: str, command: str, args: Any) -> str:
    """What to write instead of a setting that a command does not have."""
    if key.startswith(LABEL_MAP.rstrip(".")):
        return "write labels.map.LABEL.CLASS=NAME for each class, as labels.map.genre.hiphop=rap"
    cfg, groups = _composed(command, args)
    hints = [f"did you mean {near}?"] if (near := " or ".join(_nearest(key, cfg, groups))) else []
    top = key.partition(".")[0]
    for other in COMMANDS if top not in cfg and top not in groups else ():
        theirs, their_groups = _composed(other, args, chosen=False)
        if top in theirs or top in their_groups:
            hints.append(f"{top} belongs to midigenre {other}")
            break
    if not hints and (theirs := _nearest(key, *_composed("train", args, chosen=False))):
        hints.append(f"midigenre train has {' and '.join(theirs)}")
    return " ".join(hints) or f"midigenre {command} --help lists the settings"


def _option(option: str, command: str, args: Any) -> str:
    """The message for ``--model tiny``, which argparse does not know."""
    name, equals, value = option.lstrip("-").partition("=")
    key = name.replace("-", "_")
    values = [value] if equals else [o for o in args.overrides if "=" not in o]
    cfg, groups = _composed(command, args)
    if key not in cfg and key not in groups:
        near = _nearest(key, cfg, groups)
        key = near[0] if near else ""
    how = f"write {key}={values[0] if values else 'VALUE'}" if key else "settings are key=value"
    return f"{option}: no such option; {how}"


def _worded(error: BaseException, command: str, args: Any) -> str:
    """An error as one line that names the value and the choices."""
    from hydra.errors import HydraException

    from midigenre.commands.job import reason
    from midigenre.errors import UserError

    # Hydra's exception for a missing file is an OSError too.
    if isinstance(error, (UserError, OSError)) and not isinstance(error, HydraException):
        return reason(error)
    text = str(error)
    missing = re.search(r"Could not (?:find|load) '([^']+)'", text)
    if missing and missing[1] in PLUGINS:
        return (
            f"hydra/launcher needs {PLUGINS[missing[1]]}, which is not installed: "
            'pip install "midigenre[sweep]"'
        )
    if missing and "vailable options" in text:
        group, _, name = missing[1].rpartition("/")
        options = re.findall(r"^\s+(\S+)$", text.split("vailable options", 1)[1], re.M)
        return f"{group}={name}: no such choice{_near(name, options)}"
    wrong = re.search(r"Could not override '([^']+)'", text)
    if wrong:
        return f"{wrong[1]}: no such setting; {_instead(wrong[1], command, args)}"
    stray = re.search(r"mismatched input '([^']*)'|LexerNoViableAltException: (\S+)", text)
    if stray:
        return f"{(stray[1] or stray[2])!r} is no setting; write key=value, and paths after --"
    unparsed = re.search(r"Error parsing override '(.*?)'\s*\n", text, re.S)
    if unparsed:
        return f"{unparsed[1]!r} is no setting; write key=value, and paths after --"
    return " ".join(text.split())


def _near(name: str, options: Sequence[str]) -> str:
    if not options:
        return ""
    near = difflib.get_close_matches(name, options, 1)
    guess = f"did you mean {near[0]}? " if near else ""
    return f"; {guess}there is {', '.join(options)}"


def _fail(message: str, status: int = 2) -> int:
    sys.stdout.flush()
    print(f"midigenre: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
