"""One prepared toy corpus for all tests of ``data``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for toysongs.py

from toysongs import prepared

from midigenre.corpora.toy import Toy
from midigenre.data import prepare as prepare_module
from midigenre.data.phrases import MemorySongs
from midigenre.data.shards import ShardSet


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors gain nothing from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def toy_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that holds ``corpora/`` and ``shards/``."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def toy(toy_home: Path) -> ShardSet:
    """48 toy songs as REMI in five parts. Read only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module, "SONGS_PER_FILE", (10, 10))
        return prepared(Toy(n_songs=48), toy_home)


@pytest.fixture(scope="session")
def toy_songs(toy: ShardSet) -> dict[str, MemorySongs]:
    """The first eight toy songs for each tokenizer."""
    from toysongs import CLASSES, in_memory

    files = [Path(toy.manifest[i]["path"]).read_bytes() for i in range(8)]
    return {kind: in_memory(files, kind) for kind in CLASSES}
