"""CONTRIBUTING's worked examples: its files go into a copy of the tree, its commands run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Worked examples")[1]
FILES = dict(re.findall(r"^`(\S+)`\n\n```\w+\n(.*?)^```", TEXT, re.M | re.S))
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S) for line in block.splitlines()
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources with the files of the examples."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, content in FILES.items():
        assert not (folder / name).exists(), f"{name} exists already: it is no example"
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def test_every_kind_of_addition_has_an_example() -> None:
    folders = {str(Path(name).parent) for name in FILES}
    assert folders == {
        "conf/tokenizer", "src/midigenre/corpora", "conf/corpus", "conf/model", "conf/experiment",
    }  # fmt: skip
    assert len(COMMANDS) == 4


@pytest.mark.parametrize(
    "command",
    [pytest.param(c, marks=pytest.mark.slow if " train " in c else []) for c in COMMANDS],
)
def test_its_command_runs(tree: Path, command: str) -> None:
    program, *arguments = shlex.split(command)
    assert program == "midigenre"
    environment = os.environ | {"PYTHONPATH": str(tree / "src")}
    environment.pop("MIDIGENRE_HOME", None)
    found = subprocess.run(
        [sys.executable, "-m", "midigenre", *arguments],
        cwd=tree, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    made = tree / found.stdout.strip()
    expected = "metrics.json" if arguments[0] == "train" else "report.json"
    assert (made / expected).is_file()
