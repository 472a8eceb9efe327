"""The wheel, installed elsewhere, trains from another folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

OWN = {
    "tokenizer/mine.yaml": """
defaults: [shared/grid@_here_, _self_]
name: mine
cls: Structured
time_signatures: [4/4]
params: {use_programs: false, use_velocities: true, num_velocities: 16, use_time_signatures: false}
""",
    "model/dot.yaml": """
defaults: [tiny, _self_]
name: dot
d_model: 16
n_layers: 1
n_heads: 2
d_ff: 32
""",
    "experiment/own.yaml": """
# @package _global_
defaults: [{override /tokenizer: mine}, {override /model: dot}, {override /corpus: toy}]
name: own
corpus: {n_songs: 48}
data: {batch_phrases: 8}
trainer: {max_epochs: 1, max_steps: 3}
""",
    "sweep/two.yaml": """
# @package _global_
name: two
hydra: {mode: MULTIRUN, sweeper: {params: {seed: "1,2"}}}
""",
}
"""A person's own folder of choices."""


def run(*command, **settings):
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """``program(*arguments)`` of the installed wheel in another folder, and that folder."""
    tmp_path = tmp_path_factory.mktemp("wheel")
    wheels, site, elsewhere = (tmp_path / name for name in ("wheels", "site", "else where"))
    elsewhere.mkdir()
    # No isolation and no dependencies: nothing is fetched.
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(wheels), cwd=ROOT)
    (wheel,) = wheels.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "midigenre/conf/tokenizer/shared/grid.yaml" in names
    assert "midigenre/py.typed" in names
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(site),
        "--disable-pip-version-check", str(wheel))  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "MIDIGENRE_HOME"}
    environment |= {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    where = run(sys.executable, "-c", "import midigenre; print(midigenre.__file__)",
                cwd=elsewhere, env=environment).stdout  # fmt: skip
    assert Path(where.strip()).is_relative_to(site)

    def call(*arguments):
        return run(sys.executable, "-m", "midigenre", *arguments, cwd=elsewhere, env=environment)

    return call, elsewhere


def test_the_wheel_trains_from_another_folder(program):
    call, elsewhere = program
    done = call("train", "corpus=toy", "corpus.limit=48", "trainer.max_epochs=1")
    folder = elsewhere / done.stdout.strip()
    assert (folder / "evaluation.json").is_file()
    assert {p.name for p in elsewhere.iterdir()} == {"runs", "shards", "corpora"}


@pytest.mark.slow
def test_choices_of_ones_own(program):
    call, elsewhere = program
    for name, text in OWN.items():
        path = elsewhere / "my conf" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    own = ("--config-dir", "my conf")
    sweep = call("train", *own, "sweep=two", "experiment=own", "hydra/launcher=cores",
                 "hydra.launcher.n_jobs=2")  # fmt: skip
    folder = elsewhere / sweep.stdout.strip()
    jobs = [folder / f"{i}-seed={i + 1}" for i in (0, 1)]
    for job in jobs:
        assert "name: dot\n" in (job / "config.yaml").read_text()
        assert "cls: Structured\n" in (job / "config.yaml").read_text()
        assert (job / "evaluation.json").is_file()
    song = next((elsewhere / "corpora").rglob("*.mid"))
    assert '"genre"' in call("predict", f"run={jobs[0]}", "--", str(song)).stdout


@pytest.mark.slow
def test_choices_of_ones_own_in_every_command(program):
    call, elsewhere = program
    path = elsewhere / "more" / "tokenizer" / "other.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(OWN["tokenizer/mine.yaml"].replace("mine", "other"))
    (elsewhere / "more" / "model").mkdir()
    (elsewhere / "more" / "model" / "dot2.yaml").write_text(OWN["model/dot.yaml"])
    small = ("corpus=toy", "corpus.n_songs=48", "trainer.max_epochs=1", "trainer.max_steps=3")
    place = f"hydra.searchpath=['file://{elsewhere / 'more'}']"
    done = call("train", place, *small, "tokenizer=other", "model=dot2", "name=single")
    run = done.stdout.strip()
    prepared = call("prepare", "--config-dir", "more", *small[:2], "tokenizer=other")
    assert len(list((elsewhere / "shards").glob("toy-other-*/report.json"))) == 1
    song = next((elsewhere / "corpora").rglob("*.mid"))
    call("inspect", "--config-dir", "more", "tokenizer=other", "--", str(song))
    # What was trained explains itself: the folder is not asked for any more.
    call("train", f"resume={run}", "trainer.max_steps=4")
    call("evaluate", f"run={run}")
    assert "single" in call("compare", "--config-dir", "more", "--", "runs/single").stdout
    assert prepared.stdout.strip().startswith("shards/toy-other-")
