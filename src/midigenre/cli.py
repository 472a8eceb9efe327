"""``midigenre COMMAND [overrides] [-- PATH ...]``.

Reads the command line, quotes paths for Hydra and gives errors one line and an exit status.
``sys.argv`` stays as it is: Lightning starts the further processes of a distributed run from it.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from midigenre.errors import UserError
from midigenre.registry import conf_dir

COMMANDS = {
    "prepare": "corpus to shards",
    "inspect": "one song's tokens in words, as MIDI and as piano roll",
    "train": "prepare if needed, train, test the best checkpoint",
    "evaluate": "a run on its own test set or on any labelled corpus",
    "predict": "labels of MIDI files, as JSON lines",
    "embed": "vectors of MIDI files, as Parquet and for TensorBoard's projector",
    "generate": "pieces of a genre or emotion, or continuations of a file, as MIDI and piano rolls",
    "judge": "control, distance, structure and novelty of generated music, and a page to listen",
    "export": "a trained model as a folder to hand on, or to put on the Hugging Face Hub",
    "tune": "the settings of train that validate best, found by trials",
    "compare": "the table of runs: settings that differ, scores, cost",
}

USAGE = "\n".join([
    "midigenre COMMAND [overrides] [-- PATH ...]",
    "",
    *(f"  {name:<{max(map(len, COMMANDS))}}  {what}" for name, what in COMMANDS.items()),
    "",
    "midigenre COMMAND --help lists the settings, --cfg job shows the composed config;",
    "-m runs a sweep over comma-separated values. midigenre --version prints the version.",
])  # fmt: skip

TEXT_KEYS = (
    "corpus.root", "corpus.path", "corpus.group_pattern", "corpus.url", "run", "resume", "shards",
    "path", "song", "out", "home", "csv", "prime", "init_from", "soundfont", "judge", "clean",
    "prepare.folder", "prepare.scheduler", "genre", "emotion", "storage",
)  # fmt: skip
"""Paths and names of classes: any text a shell can pass; Hydra's grammar must not parse it.

``conditions.LABEL`` of ``generate`` names a class too.
"""

LABEL_MAP = "labels.map."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The exit status: 0, 2 on a user's error (one line on stderr), 130 when interrupted.
    """
    command, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if command == "--version":
        from midigenre import __version__

        print(f"midigenre {__version__}")
        return 0
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        return _fail(f"no command {command!r}; {hint}")
    try:
        return _run(_command_line(command, arguments))
    except SystemExit as error:  # of a sweep that a signal has stopped
        return int(error.code or 0)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # for instance `midigenre predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (UserError, OSError) as error:
        from midigenre.commands.hydra_job import one_line

        if any(a.lower() in ("debug=true", "debug=1") for a in arguments):
            traceback.print_exception(error)
            return 2
        return _fail(one_line(error), getattr(error, "status", 2))


def _fail(message: str, status: int = 2) -> int:
    sys.stdout.flush()
    print(f"midigenre: {message}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; midigenre --help lists the commands")


def _command_line(command: str, arguments: Sequence[str]) -> argparse.Namespace:
    """Settings, options and paths; what is not a known option goes into ``unknown``."""
    from midigenre.commands.hydra_job import quoted

    cut = arguments.index("--") if "--" in arguments else len(arguments)
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-c", "--cfg", choices=("job", "hydra", "all"))
    parser.add_argument("-p", "--package")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-cd", "--config-dir")
    line, unknown = parser.parse_known_intermixed_args(overrides_of(arguments[:cut]))
    line.command, line.paths, line.unknown = command, tuple(arguments[cut + 1 :]), unknown
    if (own := line.config_dir) is not None:
        if not os.path.isdir(own):
            raise UserError(f"--config-dir={own}: no such folder")
        more = [o for o in line.overrides if o.startswith("hydra.searchpath=")]
        folders = [quoted(f"file://{os.path.abspath(own)}")]
        folders += [o.partition("=")[2].strip("[]") for o in more]
        line.overrides = [o for o in line.overrides if o not in more]
        line.overrides.append(f"hydra.searchpath=[{','.join(folders)}]")
    return line


def overrides_of(arguments: Sequence[str]) -> list[str]:
    """The arguments with the values of :data:`TEXT_KEYS` quoted for Hydra.

    ``ckpt`` is a path unless it is ``best`` or ``last``; ``null`` stays null. In
    ``labels.map.LABEL.CLASS=NAME`` any text may stand for CLASS and NAME.
    """
    from midigenre.commands.hydra_job import hydra_key, quoted

    out = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        text = "null" if value == "null" else quoted(value)
        if equals and key.startswith(LABEL_MAP):
            label, _, name = key.removeprefix(LABEL_MAP).partition(".")
            names = f"{{{label}: {{{hydra_key(name)}: {text}}}}}"
            argument = f"++labels.map={names}" if name else f"++{argument}"
        elif equals and (
            key in TEXT_KEYS
            or key.lstrip("+").startswith("conditions.")
            or (key in ("ckpt", "judge_ckpt") and value not in ("best", "last"))
        ):
            argument = f"{key}={text}"
        out.append(argument)
    return out


def _run(line: argparse.Namespace) -> int:
    # Imported here so that `midigenre` and `--version` answer at once.
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf.errors import OmegaConfBaseException

    from midigenre.commands.hints import check_choices, help_of, option, without_plus, worded
    from midigenre.commands.hydra_job import run_once

    with initialize_config_dir(str(conf_dir().resolve()), "midigenre", version_base=None):
        try:
            line.overrides = without_plus(line)
            if line.unknown:
                raise UserError(option(line))
            check_choices(line)
            if line.help:
                print(help_of(line))
            elif line.cfg is not None:
                hydra: Any = GlobalHydra.instance().hydra
                hydra.show_cfg(line.command, line.overrides, line.cfg, line.package, line.resolve)
            elif line.command == "tune":
                return _tune(line)
            elif line.multirun or any(
                o.startswith(("sweep=", "hydra.mode=MULTIRUN")) for o in line.overrides
            ):
                from midigenre.commands.sweep import run_sweep

                return run_sweep(line)
            else:
                cfg = compose(line.command, line.overrides, return_hydra_config=True)
                if cfg.hydra.mode == RunMode.MULTIRUN:
                    raise UserError("these settings make a sweep: run it with -m")
                run_once(cfg, line.command, line.paths)
            return 0
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(worded(error, line, tuple(COMMANDS))) from error


def _tune(line: argparse.Namespace) -> int:
    try:
        from midigenre.commands.tune import run_tune
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise UserError('tune needs Optuna: pip install "midigenre[tune]"') from error
    return run_tune(line)


if __name__ == "__main__":
    sys.exit(main())
