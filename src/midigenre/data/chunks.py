"""Makes the shard files of a corpus, some hundred songs each: in processes here or on a cluster.

A chunk is made by one process, which writes it to its place and returns only its size. Its
content depends on the songs alone, so that the files are the same whoever makes them.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np
from joblib.externals.loky.process_executor import TerminatedWorkerError
from numpy.typing import NDArray

from midigenre.corpora.base import Progress, SongRef, no_progress
from midigenre.data.sandbox import DIGEST_BYTES, Limits, shared_sandbox, song_bytes
from midigenre.data.shards import schema, write_part
from midigenre.errors import RejectedSongError, UserError
from midigenre.files import read_bytes, read_json, sha256, write_bytes, write_json
from midigenre.spec import LabelSpec, TokenSpec
from midigenre.storage import Location

BACKENDS = ("loky", "dask")

CONNECT_SECONDS = 30
_ATTEMPTS = 3  # how often workers may be killed before it is not an accident
_BATCH = 64  # files that a thread hashes at a time


def file_digests(
    songs: Sequence[SongRef], limits: Limits, n_workers: int, progress: Progress
) -> dict[str, bytes]:
    """SHA-256 of the bytes of each file; empty for one that cannot be read (rejected later)."""

    def digest(ref: SongRef) -> bytes:
        try:
            return hashlib.sha256(song_bytes(ref, limits)).digest()
        except RejectedSongError:
            return b""

    found: dict[str, bytes] = {}
    # Reading and hashing release the interpreter lock: threads are enough.
    parallel = joblib.Parallel(
        n_jobs=n_workers, prefer="threads", return_as="generator", batch_size=_BATCH
    )
    digests = parallel(joblib.delayed(digest)(ref) for ref in songs)
    for ref, one in zip(songs, digests, strict=True):
        found[ref.song_id] = one
        progress("hashing", len(found), len(songs))
    return found


@dataclass(frozen=True)
class ChunkSummary:
    """What is known of a chunk's songs besides the shard file itself.

    ``part`` is an entry of ``spec.json``. ``kept`` and ``rejected`` say for each song its place in
    the chunk, and columns of the manifest or the reason. Of the kept ones ``digests`` are hashes of
    the notes, uint8 (kept, 16), ``sketches`` those of ``duplicates.sketch``, uint32 (kept, S).
    """

    part: dict[str, Any]
    kept: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    digests: NDArray[np.uint8]
    sketches: NDArray[np.uint32]


@dataclass(frozen=True)
class Chunk:
    """Songs that become one shard file; the object is sent to a worker.

    ``digests`` are the SHA-256 of their files as they were listed, empty where one could not be
    read.
    """

    folder: Location
    index: int
    songs: Sequence[SongRef]
    digests: Sequence[bytes]
    labels: LabelSpec
    tokens: TokenSpec
    limits: Limits

    def make(self, progress: Progress = no_progress) -> int:
        """Writes the chunk and what :meth:`summary` reads, unless an earlier run has done so.

        Returns its number of songs.

        Raises:
            OSError: The disk is full or cannot be written; nothing half-written is left.
        """
        if not self._is_made():
            self._make(progress)
        return len(self.songs)

    def summary(self) -> ChunkSummary:
        """What :meth:`make` noted."""
        done = read_json(self._path("done.json"))
        with np.load(io.BytesIO(read_bytes(self._path("npz"))), allow_pickle=False) as arrays:
            return ChunkSummary(
                done["part"], done["kept"], done["rejected"], arrays["digests"], arrays["sketches"]
            )

    def forget(self) -> None:
        """Removes what only :meth:`summary` needs."""
        for ending in ("npz", "done.json"):
            self._path(ending).unlink(missing_ok=True)

    def _path(self, ending: str) -> Location:
        return self.folder / f"part-{self.index:05d}.{ending}"

    def _key(self) -> str:
        """Hash of what the chunk is made of."""
        found = hashlib.sha256()
        for song, digest in zip(self.songs, self.digests, strict=True):
            found.update(json.dumps(song.song_id).encode() + digest)
        return found.hexdigest()

    def _is_made(self) -> bool:
        """Whether an earlier, stopped run left the chunk whole, and of the same files."""
        if not self._path("done.json").is_file():
            return False
        done = read_json(self._path("done.json"))
        return done["key"] == self._key() and all(
            (path := self.folder / name).is_file() and sha256(path) == expected
            for name, expected in done["files"].items()
        )

    def _make(self, progress: Progress) -> None:
        rows: list[dict[str, Any]] = []
        kept: list[dict[str, Any]] = []
        rejected: list[dict[str, Any]] = []
        digests: list[bytes] = []
        sketches: list[NDArray[np.uint32]] = []
        for i, (ref, digest) in enumerate(zip(self.songs, self.digests, strict=True)):
            try:
                data = song_bytes(ref, self.limits)
                if digest and hashlib.sha256(data).digest() != digest:
                    detail = "it was written to while the corpus was being prepared"
                    raise RejectedSongError("changed", detail)
                found = shared_sandbox().read("encode", data, self.tokens, self.limits)
            except RejectedSongError as error:
                rejected.append({"at": i, "reason": error.reason, "detail": error.detail})
            else:
                digests.append(found["notes_digest"])
                sketches.append(found["sketch"])
                columns = found["columns"]
                rows.append({"song_id": ref.song_id, **self.labels.encode(ref.labels), **columns})
                kept.append(
                    {"at": i, "bars": len(columns["bar_onsets"]), "notes": len(columns["pitch"]),
                     "tokens": found["tokens"], "repairs": found["repairs"],
                     "fallback": found["fallback"]}
                )  # fmt: skip
            progress("encoding", i + 1, len(self.songs))
        about = write_part(self._path("arrow"), rows, schema(self.tokens, self.labels))
        packed = io.BytesIO()
        np.savez(
            packed,
            digests=np.frombuffer(b"".join(digests), np.uint8).reshape(len(kept), DIGEST_BYTES),
            sketches=np.array(sketches, np.uint32),
        )
        arrays = packed.getvalue()
        write_bytes(self._path("npz"), arrays)
        files = {
            about["file"]: about["sha256"],
            self._path("npz").name: hashlib.sha256(arrays).hexdigest(),
        }
        done = {"key": self._key(), "files": files, "part": about, "kept": kept}
        # Last: it marks the others as complete.
        write_json(self._path("done.json"), done | {"rejected": rejected})


@dataclass(frozen=True)
class Workers:
    """Where chunks are made; their content does not depend on it.

    Attributes:
        n: Processes. For a running cluster, what the cluster has.
        backend: One of :data:`BACKENDS`, joblib's name for it.
        scheduler: Address of a Dask cluster (``tcp://host:8786``); None starts one here.

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

    def make(self, chunks: Sequence[Chunk], progress: Progress) -> None:
        """Makes all chunks of a folder; those that an earlier run made whole stay.

        Raises:
            UserError: Worker processes are killed again and again, or Dask is not installed.
            OSError: The disk is full or cannot be written.
        """
        total = sum(len(chunk.songs) for chunk in chunks)
        if self.backend == "loky" and (self.n == 1 or len(chunks) < 2):
            done = 0
            for chunk in chunks:
                done += chunk.make(_shifted(progress, done, total))
                progress("encoding", done, total)
            return
        for _ in range(_ATTEMPTS):
            try:
                with self._backend():
                    # One at a time: joblib would batch quick ones and report nothing meanwhile.
                    parallel = joblib.Parallel(
                        n_jobs=-1 if self.scheduler else self.n, return_as="generator_unordered",
                        batch_size=1,
                    )  # fmt: skip
                    done = 0
                    for n in parallel(joblib.delayed(Chunk.make)(chunk) for chunk in chunks):
                        done += n
                        progress("encoding", done, total)
                return
            except TerminatedWorkerError as error:
                killed = error
        raise UserError(
            "worker processes were killed three times, perhaps for lack of memory; run the command "
            "again with n_workers=1: it resumes where it stopped"
        ) from killed

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


def _shifted(progress: Progress, begin: int, total: int) -> Progress:
    return lambda what, done, _: progress(what, begin + done, total)
