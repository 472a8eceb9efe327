"""The worked examples of docs/howto: their files go into a copy of the tree, their commands run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from boards import Board

SMALL = ("model.d_model=32", "model.n_heads=2", "model.n_layers=1", "model.d_ff=32",
         "trainer.max_epochs=1")  # fmt: skip
ROOT = Path(__file__).parents[1]
TOKENIZER, CORPUS, RECIPE, METRIC = (
    (ROOT / "docs" / "howto" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("tokenizer", "corpus", "recipe", "metric")
)
TEXT = TOKENIZER + CORPUS + RECIPE
FILES = dict(re.findall(r"^`(\S+)`\n\n```\w+\n(.*?)^```", TEXT, re.M | re.S))
# Each comes right behind the last file that it needs.
COMMANDS = re.findall(r"^```\n\n```bash\n(.*)\n```", TEXT, re.M)


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


def run(tree: Path, command: str, *more: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of an example in the tree."""
    program, *arguments = shlex.split(command)
    assert program == "midigenre"
    environment = os.environ | {"PYTHONPATH": str(tree / "src")}
    environment.pop("MIDIGENRE_HOME", None)
    found = subprocess.run(
        [sys.executable, "-m", "midigenre", *arguments, *more],
        cwd=tree, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return found


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
    made = tree / run(tree, command).stdout.strip()
    expected = "metrics.json" if " train " in command else "report.json"
    assert (made / expected).is_file()


@pytest.mark.slow
def test_a_metric_stands_everywhere(tree: Path, tmp_path: Path) -> None:
    """One entry, and every place has it, for the model and every baseline."""
    shutil.copytree(tree / "src", tmp_path / "src")
    shutil.copytree(tree / "conf", tmp_path / "conf")
    ((path, code),) = re.findall(
        r"^At the end of `(\S+)`\n\n```python\n(.*?)^```", METRIC, re.M | re.S
    )
    with (tmp_path / path).open("a", encoding="utf-8") as file:
        file.write(code)
    block = re.findall(r"```bash\n(.*?)```", METRIC, re.S)[0]
    train, compare = block.splitlines()
    found = run(tmp_path, train, *SMALL)
    folder, name = tmp_path / found.stdout.strip(), "balanced_accuracy"
    for place in (folder, folder / "fold-1-of-2"):  # a cross-validation, and one split
        evaluation = json.loads((place / "evaluation.json").read_text())
        for levels in evaluation.values():
            for scores in levels.values():
                assert 0 <= scores[name] <= 1
                assert len(scores["ci95"][name]) == 2
                assert len(scores["baselines"]) > 3
                for baseline in scores["baselines"].values():
                    assert 0 <= baseline[name] <= 1
                    assert set(baseline["versus_model"][name]) == {"difference", "ci95", "p"}
                    assert name in baseline["ci95"]
                assert all(name in row for row in scores["abstention"]["curve"])
        tests = json.loads((place / "metrics.json").read_text())["test"]
        assert f"test/genre/song/{name}" in tests
    pooled = json.loads((folder / "evaluation.json").read_text())["genre"]["song"]
    assert all(name in part for part in pooled["parts"])
    assert name in pooled["over_parts"]
    assert found.stderr.count("balanced accuracy") >= 3  # both folds, and all songs
    logged = Board(folder).tags["scalars"]["fold-1-of-2"]
    assert any(tag.endswith(f"test_song_{name}") for tag in logged)
    assert f"val/genre/{name}" in logged
    table = run(tmp_path, compare).stdout
    score = pooled[name]
    assert "song balanced accuracy" in table
    assert f"| {score:.3f} " in table
