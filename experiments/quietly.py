"""Runs midigenre's commands for the studies; what they print is shown only where one fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_SHOWN = 15  # last lines of a command that failed


def midigenre(*arguments: str) -> str:
    """Runs a command.

    Returns:
        The last line of its stdout: the file or folder that it has written.

    Raises:
        SystemExit: It failed; the message has what it printed last.
    """
    command = [sys.executable, "-m", "midigenre", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "\n".join(done.stderr.strip().splitlines()[-_SHOWN:])
        sys.exit(f"midigenre {' '.join(arguments)}\nended with {done.returncode}:\n{said}")
    return (done.stdout.strip().splitlines() or [""])[-1]


def commit() -> str:
    """The commit that a study is run at."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    here = Path(__file__).parent
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
    return done.stdout.strip()
