"""Settings of runs that take seconds."""

import os
from contextlib import contextmanager
from pathlib import Path

SMALL = ("corpus=toy", "corpus.n_songs=48", "model.d_model=32", "model.n_heads=2",
         "model.n_layers=1", "model.d_ff=32", "data.batch_phrases=16")  # fmt: skip


@contextmanager
def working_in(folder):
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield Path(folder)
    finally:
        os.chdir(before)
