"""The wheel, installed elsewhere, trains from another folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*command, **settings):
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_the_wheel_trains_from_another_folder(tmp_path):
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
    done = run(
        sys.executable, "-m", "midigenre", "train", "corpus=toy", "corpus.limit=48",
        "trainer.max_epochs=1", cwd=elsewhere, env=environment,
    )  # fmt: skip
    folder = elsewhere / done.stdout.strip()
    assert (folder / "evaluation.json").is_file()
    assert {p.name for p in elsewhere.iterdir()} == {"runs", "shards", "corpora"}
