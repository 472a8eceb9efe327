"""``midigenre COMMAND [hydra overrides] [-- PATH ...]``.

Hydra composes the config; this file only dispatches, quotes paths and words errors. It leaves
``sys.argv`` alone: Lightning starts the further processes of a distributed run from it.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

COMMANDS = {
    "prepare": "corpus to shards",
    "inspect": "one song's tokens in words, as MIDI and as piano roll",
    "train": "prepare if needed, train, test the best checkpoint",
    "evaluate": "a run on its own test set or on any labelled corpus",
    "predict": "labels of MIDI files, as JSON lines",
}

PATH_KEYS = (
    "corpus.root", "run", "resume", "shards", "path", "song", "out", "home",
)  # fmt: skip
"""Settings that take any text a shell can pass; Hydra's grammar is kept away from them."""


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


def conf_dir() -> Path:
    """The config tree: inside the installed package, or beside ``src`` in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"


def quoted(text: str) -> str:
    """A string literal of Hydra's override grammar that stands for exactly ``text``.

    Backslashes double before a quote (Hydra's rule) and before ``${`` (OmegaConf's, which then
    does not take it for an interpolation).
    """
    text = re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + "\\${", text)
    text = re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"'{text}'"


def overrides_of(arguments: Sequence[str]) -> list[str]:
    """The arguments with the values of :data:`PATH_KEYS` quoted for Hydra.

    ``ckpt`` is a path unless it is ``best`` or ``last``; ``null`` stays null.
    """
    out = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        is_path = key in PATH_KEYS or (key == "ckpt" and value not in ("best", "last"))
        if equals and is_path and value != "null":
            argument = f"{key}={quoted(value)}"
        out.append(argument)
    return out


def run_name() -> str:
    """Default of ``name``: corpus, tokenizer, model and task; ``sweep`` for all jobs of one."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    # A sweep's folder is named before there is a job whose choices could name it.
    if not HydraConfig.initialized() or HydraConfig.get().mode == RunMode.MULTIRUN:
        return "sweep"
    chosen = HydraConfig.get().runtime.choices
    return "-".join(str(chosen[group]) for group in ("corpus", "tokenizer", "model", "task"))


def _dispatch(command: str, arguments: Sequence[str], paths: Sequence[str]) -> int:
    # Imported here so that `midigenre` and `--version` answer at once.
    from hydra._internal.utils import _run_hydra, get_args_parser
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from midigenre.errors import UserError

    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    debug = any(a.lower() in ("debug=true", "debug=1") for a in arguments)
    overrides = overrides_of(arguments)
    resume = next((a.removeprefix("resume=") for a in arguments if a.startswith("resume=")), None)
    # Only a run's own folder: Hydra would make any other, or write into it, before it is refused.
    if resume is not None and (Path(resume) / "config.yaml").is_file():
        overrides.append(f"hydra.run.dir={quoted(resume)}")
    # Hydra then lets exceptions through instead of wording them itself.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    parser = get_args_parser()
    try:
        args = parser.parse_args(overrides)
    except SystemExit as error:
        return int(error.code or 0)
    failure: list[BaseException] = []

    def task(cfg: DictConfig) -> Any:
        # Hydra reports a failed job in words of its own: keep the exception for ourselves, but
        # in a sweep let Hydra see it.
        try:
            check_types(cfg, command)
            module = importlib.import_module(f"midigenre.commands.{command}")
            execute: Callable[[DictConfig, Sequence[str]], Any] = module.run
            return execute(cfg, paths)
        except BaseException as error:
            if args.multirun:
                raise
            failure.append(error)
            return None

    try:
        _run_hydra(
            args=args,
            args_parser=parser,
            task_function=task,
            config_path=str(conf_dir()),
            config_name=command,
        )
        if failure:
            raise failure[0]
    except SystemExit as error:  # Hydra's --help and --info
        return int(error.code or 0)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # for instance `midigenre predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (UserError, HydraException, OmegaConfBaseException, OSError) as error:
        if debug:
            traceback.print_exception(error)
            return 2
        return _fail(_worded(error, command, overrides))
    return 0


def check_types(cfg: Any, command: str) -> None:
    """Refuses an override of another type than the default it replaces.

    Raises:
        UserError: For instance text where a number stands in the config.
    """
    from hydra import compose
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from midigenre.errors import UserError

    given = [o.lstrip("+~") for o in HydraConfig.get().overrides.task]
    keys = [o.partition("=")[0] for o in given if "=" in o]
    dotted = [key for key in keys if "@" not in key and "/" not in key]
    default = compose(command, overrides=_groups(given))
    for key in dotted:
        was, now = (OmegaConf.select(c, key, throw_on_missing=False) for c in (default, cfg))
        if was is None or now is None or isinstance(was, str) or OmegaConf.is_config(was):
            continue
        right = (
            isinstance(now, bool) if isinstance(was, bool)
            else isinstance(now, int) and not isinstance(now, bool) if isinstance(was, int)
            else isinstance(now, (int, float)) and not isinstance(now, bool)
        )  # fmt: skip
        if not right:
            kinds = {bool: "true or false", int: "a whole number", float: "a number"}
            raise UserError(f"{key}={now}: must be {kinds[type(was)]}; the default is {was}")


def _groups(overrides: Sequence[str]) -> list[str]:
    """Those overrides that choose a file of a config group."""
    folders = {p.name for p in conf_dir().iterdir() if p.is_dir()}
    return [o for o in overrides if o.partition("=")[0] in folders]


def _composed(command: str, overrides: Sequence[str]) -> Any:
    """The config that the chosen groups give, to list the settings beside a misspelt one."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    with initialize_config_dir(str(conf_dir().resolve()), version_base=None):
        for groups in (_groups(overrides), []):
            try:
                return compose(command, overrides=groups)
            except HydraException:  # a group that does not exist: the defaults will do
                continue
    return OmegaConf.create({})


def _worded(error: BaseException, command: str, overrides: Sequence[str]) -> str:
    """An error as one line that names the value and the choices."""
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    from midigenre.errors import UserError

    if isinstance(error, UserError):
        return " ".join(str(error).split())
    # Hydra's exception for a missing file is an OSError too.
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return f"{error.filename or command}: {error.strerror or error}"
    text = str(error)
    missing = re.search(r"Could not find '([^']+)'", text)
    if missing and "vailable options" in text:
        group, _, name = missing[1].rpartition("/")
        options = re.findall(r"^\s+(\S+)$", text.split("vailable options", 1)[1], re.M)
        return f"{group}={name}: no such choice{_near(name, options)}"
    wrong = re.search(r"Could not override '([^']+)'", text)
    if wrong:
        parent, _, name = wrong[1].rpartition(".")
        known = _composed(command, overrides)
        node = OmegaConf.select(known, parent) if parent else known
        options = [str(k) for k in node if k != "_target_"] if OmegaConf.is_dict(node) else []
        return f"{wrong[1]}: no such setting{_near(name, sorted(options))}"
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
