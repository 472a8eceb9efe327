"""Who makes the parts: this process, processes beside it, or a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError
from upath import UPath

from midigenre.corpora.base import Progress
from midigenre.data.encode import Part, make_part
from midigenre.errors import UserError

BACKENDS = ("loky", "dask")

CONNECT_SECONDS = 30
_ATTEMPTS = 3  # how often workers may be killed before it is no accident


@dataclass(frozen=True)
class Workers:
    """Where parts are made; what is in them does not depend on it.

    Attributes:
        n: Processes. With a cluster that runs already it is what the cluster has.
        backend: One of :data:`BACKENDS`, joblib's name for it.
        scheduler: Address of a Dask cluster, for instance ``tcp://host:8786``; one of ``n``
            processes is started on this machine if None.

    Raises:
        UserError: There is no such backend.
    """

    n: int = 1
    backend: str = "loky"
    scheduler: str | None = None

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise UserError(f"prepare.backend={self.backend}: choose {' or '.join(BACKENDS)}")
        if self.scheduler is not None and self.backend != "dask":
            raise UserError(
                f"prepare.scheduler={self.scheduler} is a Dask cluster's: set prepare.backend=dask"
            )

    def make(self, parts: Sequence[Part], progress: Progress) -> None:
        """Makes all parts that an earlier run has not left whole.

        Args:
            parts: The parts.
            progress: Called after every song, or every part where others make them.

        Raises:
            UserError: Worker processes are killed again and again, or Dask is not installed.
            OSError: The disk is full or cannot be written.
        """
        total = sum(len(part.songs) for part in parts)
        if self.backend == "loky" and (self.n == 1 or len(parts) < 2 or _in_this_process(parts)):
            done = 0
            for part in parts:
                done += make_part(part, _shifted(progress, done, total))
                progress("encoding", done, total)
            return
        for attempt in range(_ATTEMPTS):
            try:
                self._make_elsewhere(parts, progress, total)
            except TerminatedWorkerError as error:
                if attempt + 1 == _ATTEMPTS:
                    raise UserError(
                        "worker processes were killed three times, perhaps for want of memory; "
                        "run the command again with n_workers=1: it goes on where it stopped"
                    ) from error
            else:
                return

    def _make_elsewhere(self, parts: Sequence[Part], progress: Progress, total: int) -> None:
        with self._backend():
            # One part at a time: joblib would put quick ones together and say nothing meanwhile.
            parallel = joblib.Parallel(
                n_jobs=-1 if self.scheduler else self.n, return_as="generator_unordered",
                batch_size=1,
            )  # fmt: skip
            done = 0
            for n in parallel(joblib.delayed(make_part)(part) for part in parts):
                done += n
                progress("encoding", done, total)

    @contextmanager
    def _backend(self) -> Iterator[None]:
        if self.backend == "loky":
            with joblib.parallel_config(backend="loky"):
                yield
            return
        try:
            from distributed import Client
        except ImportError as error:
            raise UserError(
                "prepare.backend=dask needs Dask: pip install 'midigenre[dask]'"
            ) from error
        connect: Any = Client
        try:
            client = (
                connect(self.scheduler, timeout=CONNECT_SECONDS)
                if self.scheduler
                else connect(n_workers=self.n, threads_per_worker=1, dashboard_address=None)
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"prepare.scheduler={self.scheduler}: no Dask cluster answers there ({error})"
            ) from error
        with client, joblib.parallel_config(backend="dask"):
            yield


def _in_this_process(parts: Sequence[Part]) -> bool:
    """Whether the songs, or the place of the shards, exist in no other process."""
    places = [parts[0].folder, *(song.path for song in parts[0].songs[:1])]
    return any(isinstance(place, UPath) and place.protocol == "memory" for place in places)


def _shifted(progress: Progress, begin: int, total: int) -> Progress:
    return lambda what, done, _: progress(what, begin + done, total)
