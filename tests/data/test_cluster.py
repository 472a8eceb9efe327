"""A Dask cluster of two workers makes the same shards as this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from test_prepare import content
from toysongs import prepared, songs_in

from midigenre.data import prepare as module
from midigenre.data.chunks import Workers
from midigenre.errors import UserError


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SONGS_PER_FILE", (4, 4))


@pytest.fixture
def cluster() -> Iterator[Any]:
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
    ) as started:
        yield started


@pytest.mark.slow
def test_a_cluster_that_runs(tmp_path: Path, cluster: Any) -> None:
    corpus = songs_in(tmp_path / "songs", 14)
    here = prepared(corpus, tmp_path / "here")
    said: list[tuple[str, int, int]] = []
    workers = Workers(2, "dask", cluster.scheduler_address)
    there = prepared(
        corpus, tmp_path / "there", progress=lambda *a: said.append(a), workers=workers
    )
    assert content(there.folder) == content(here.folder)
    # Part by part: they were made there.
    counts = [done for what, done, _ in said if what == "encoding"]
    assert len(counts) == 4
    assert counts[-1] == 14


@pytest.mark.slow
def test_a_cluster_of_its_own(tmp_path: Path) -> None:
    corpus = songs_in(tmp_path / "songs", 9)
    here = prepared(corpus, tmp_path / "here")
    there = prepared(corpus, tmp_path / "there", workers=Workers(2, "dask"))
    assert content(there.folder) == content(here.folder)


def test_what_is_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"prepare.backend=slurm: choose loky or dask"):
        Workers(2, "slurm")
    with pytest.raises(UserError, match=r"prepare.scheduler=tcp://x:1 .*prepare.backend=dask"):
        Workers(2, "loky", "tcp://x:1")
    corpus = songs_in(tmp_path / "songs", 9)
    monkeypatch.setattr("midigenre.data.chunks.CONNECT_SECONDS", 1)
    with pytest.raises(UserError, match="no Dask cluster answers there"):
        prepared(corpus, tmp_path, workers=Workers(2, "dask", "tcp://127.0.0.1:1"))
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match=r"pip install 'midigenre\[dask\]'"):
        prepared(corpus, tmp_path, workers=Workers(2, "dask"))
