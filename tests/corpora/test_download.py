"""An archive from a server that breaks off to a folder of files."""

from __future__ import annotations

import errno
import inspect
import io
import os
import sys
import tarfile
import threading
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from midi import make_score, melody, to_bytes
from midigenre.corpora import download
from midigenre.corpora.download import fetched, unpack
from midigenre.corpora.xmidi import XMIDI
from midigenre.errors import UserError
from midigenre.files import read_bytes, write_bytes
from midigenre.storage import location
from stores import bucket

__all__ = ["bucket"]  # a fixture

FILES = {
    f"XMIDI_Dataset/XMIDI_{emotion}_{genre}_{i:08X}.midi": to_bytes(
        make_score(melody(1 + i), tpq=96)
    )
    for i, (emotion, genre) in enumerate([("happy", "pop"), ("sad", "jazz"), ("angry", "rock")])
}


def zipped(files: dict[str, bytes], noise: int = 0) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        if noise:
            archive.writestr("readme.bin", os.urandom(noise))
    return out.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


class Server(ThreadingHTTPServer):
    """Serves ``data`` under any path.

    ``broken`` replies end in the middle; ``ranges`` and ``length`` tell what it can.
    """

    data = b""
    version = "v1"
    broken = 0
    ranges = True
    length = True
    status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/XMIDI.zip?x=1"


class Handler(BaseHTTPRequestHandler):
    server: Server
    asked: list[str]

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.reply(body=False)

    def do_GET(self) -> None:
        self.reply(body=True)

    def reply(self, body: bool) -> None:
        server, data, status = self.server, self.server.data, self.server.status
        asked = self.headers.get("Range") if server.ranges else None
        if body:
            server.asked.append(asked)  # type: ignore[attr-defined]
        if asked and status == 200:
            first, last = asked.removeprefix("bytes=").split("-")
            status = 206
            whole = len(data)
            data = data[int(first) : int(last or whole) + 1]
        self.send_response(status)
        self.send_header("ETag", f'"{server.version}"')
        if server.length:
            self.send_header("Content-Length", str(len(data)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{whole}")
        self.end_headers()
        if body and status < 400:
            if server.broken and len(data) > 1:
                server.broken -= 1
                data = data[: len(data) // 2]
            self.wfile.write(data)
            self.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "WAIT", 0.0)
    monkeypatch.setattr(download, "_BLOCK", 1000)
    made = Server(("127.0.0.1", 0), Handler)
    made.data = zipped(FILES, noise=5000)
    made.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def held(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in root.rglob("*") if p.is_file() and p.name[0] != "." and p.suffix != ".bin"
    }  # fmt: skip


def beside(root: Path) -> list[str]:
    return sorted(p.name for p in root.parent.iterdir() if p != root and p.suffix != ".lock")


def test_a_download(tmp_path: Path, server: Server) -> None:
    root = tmp_path / "new" / "xmidi"
    seen: list[tuple[str, int, int]] = []
    fetched(server.url, root, 3, lambda *a: seen.append(a))
    assert held(root) == FILES
    assert beside(root) == []
    assert {what for what, _, _ in seen} == {"downloading (MB)", "unpacking"}
    assert seen[-1] == ("unpacking", 4, 4)
    server.asked.clear()  # type: ignore[attr-defined]
    fetched(server.url, root, 3)
    fetched(server.url, root, None)
    assert server.asked == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(("ranges", "length"), [(True, True), (False, True), (False, False)])
def test_a_transfer_that_breaks(tmp_path: Path, server: Server, ranges: bool, length: bool) -> None:
    server.ranges, server.length = ranges, length
    # Without a length nobody can tell that the end is missing; the archive shows it.
    server.broken = 3 if length else 0
    fetched(server.url, tmp_path / "x", 3)
    assert held(tmp_path / "x") == FILES


def test_a_file_that_comes_whole_is_streamed_to_the_disk(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_BLOCK", 100_000)
    server.ranges, server.data = False, zipped(FILES, noise=10_000_000)
    seen: list[tuple[str, int, int]] = []
    most = 0

    def progress(*what: Any) -> None:
        nonlocal most
        seen.append(what)
        if what[0] == "downloading (MB)":
            most = max(most, tracemalloc.get_traced_memory()[0] - before)

    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    fetched(server.url, tmp_path / "x", 3, progress)
    tracemalloc.stop()
    assert held(tmp_path / "x") == FILES
    assert ("downloading (MB)", 10, 10) in seen
    assert most < 8_000_000, "fsspec streams by 5 MB"


def test_a_download_goes_on_in_the_next_run(tmp_path: Path, server: Server) -> None:
    root = tmp_path / "x"
    server.broken = 10**6
    with pytest.raises(UserError, match=r"broke off at [\d,]+ of [\d,]+ bytes; run .* continues"):
        fetched(server.url, root, 3)
    server.broken = 0
    # Stopped after some blocks.
    stop = iter(range(3))

    def stopping(what: str, done: int, total: int) -> None:
        if next(stop, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetched(server.url, root, 3, stopping)
    kept = (tmp_path / ".x.archive.part").stat().st_size
    assert 2000 <= kept < len(server.data)
    server.asked.clear()  # type: ignore[attr-defined]
    fetched(server.url, root, 3)
    assert server.asked[0] == f"bytes={kept}-{kept + 999}"  # type: ignore[attr-defined]
    assert held(root) == FILES
    assert beside(root) == []


def test_another_file_at_the_address_starts_anew(tmp_path: Path, server: Server) -> None:
    server.broken = 10**6
    with pytest.raises(UserError):
        fetched(server.url, tmp_path / "x", 3)
    (tmp_path / ".x.archive.part").write_bytes(b"of the old file" * 100)
    server.broken, server.version = 0, "v2"
    fetched(server.url, tmp_path / "x", 3)
    assert held(tmp_path / "x") == FILES


def test_addresses_that_do_not_answer(tmp_path: Path, server: Server) -> None:
    server.status = 404
    with pytest.raises(UserError, match=r"http://127.*: not there"):
        fetched(server.url, tmp_path / "x", 3)
    server.status = 503
    with pytest.raises(UserError, match=r"http://127.*503"):
        fetched(server.url, tmp_path / "x", 3)
    with pytest.raises(UserError, match=r"Cannot connect .* run the command again"):
        fetched("http://127.0.0.1:9/x.zip", tmp_path / "x", 3)
    with pytest.raises(UserError, match=r"corpus\.url=/none/x\.zip: no such file"):
        fetched("/none/x.zip", tmp_path / "x", 3)


def test_a_page_instead_of_an_archive(tmp_path: Path, server: Server) -> None:
    good, server.data = server.data, b"<html>" * 1000
    with pytest.raises(UserError, match=r"not a zip or tar archive .* run the command again"):
        fetched(server.url, tmp_path / "x", 3)
    assert beside(tmp_path / "x") == []
    server.data, server.version = good, "v2"
    fetched(server.url, tmp_path / "x", 3)
    assert held(tmp_path / "x") == FILES


def test_from_a_store_and_from_here(tmp_path: Path, bucket: UPath) -> None:
    write_bytes(bucket / "XMIDI.tgz", tarred(FILES))
    fetched("s3://music/XMIDI.tgz", tmp_path / "a", 3)
    here = tmp_path / "here.zip"
    here.write_bytes(zipped(FILES))
    fetched(str(here), tmp_path / "b", 3)
    fetched(f"file://{here}", tmp_path / "c", 3)
    assert held(tmp_path / "a") == held(tmp_path / "b") == held(tmp_path / "c") == FILES
    assert here.is_file()  # it is not ours to delete


def test_another_number_of_files(tmp_path: Path, server: Server) -> None:
    root = tmp_path / "x"
    with pytest.raises(UserError, match=r"has 3 MIDI files .*corpus\.expected_files=4"):
        fetched(server.url, root, 4)
    server.asked.clear()  # type: ignore[attr-defined]
    fetched(server.url, root, 3)  # the files are there
    assert server.asked == []  # type: ignore[attr-defined]
    fetched(server.url, root, None)
    assert beside(root) == []


def test_an_archive_of_another_address_is_not_taken(tmp_path: Path, server: Server) -> None:
    root = tmp_path / "x"
    with pytest.raises(UserError, match="has 3 MIDI files"):
        fetched(server.url, root, 4)
    (fourth,) = extra = {"XMIDI_Dataset/XMIDI_warm_rock_00000009.midi": b"MThd"}
    mirror = tmp_path / "mirror.zip"
    mirror.write_bytes(zipped(FILES | extra))
    fetched(str(mirror), root, 4)
    assert (root / fourth).is_file()
    assert beside(root) == ["mirror.zip"]


def test_a_power_cut_before_the_end(tmp_path: Path, server: Server) -> None:
    root = tmp_path / "x"
    with pytest.raises(UserError):
        fetched(server.url, root, 4)
    first = root / next(iter(FILES))
    first.write_bytes(b"")
    fetched(server.url, root, 3)
    assert held(root) == FILES


def test_another_address_for_the_same_folder(tmp_path: Path, server: Server) -> None:
    fetched(server.url, tmp_path / "x", 3)
    fetched("https://mirror.org/y", tmp_path / "x", 3)  # all files are there
    with pytest.raises(UserError, match=r"holds what came from http://127.*not from https://mir"):
        fetched("https://mirror.org/y", tmp_path / "x", 4)


def test_no_room(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from midigenre import storage

    usage = storage.shutil.disk_usage(tmp_path)
    free = len(server.data) - 100
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: usage._replace(free=free))
    with pytest.raises(UserError, match=r"the download of http.* takes .* free some space"):
        fetched(server.url, tmp_path / "x", 3)
    free = len(server.data) + 300
    with pytest.raises(UserError, match=r"what .*x\.archive holds takes"):
        fetched(server.url, tmp_path / "x", 3)
    assert held(tmp_path / "x") == {}


def test_what_cannot_be_written(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot write .*file: File exists"):
        fetched(server.url, tmp_path / "file", 3)
    real = zipfile.ZipFile.extract

    def full(archive: zipfile.ZipFile, member: zipfile.ZipInfo, *more: Any) -> str:
        if member.filename.endswith("02.midi"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(archive, member, *more)

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extract", full)
        with pytest.raises(UserError, match=r"No space left on device; free .* it continues"):
            fetched(server.url, tmp_path / "x", 3)
    fetched(server.url, tmp_path / "x", 3)
    assert held(tmp_path / "x") == FILES


def test_parallel_jobs_download_once(tmp_path: Path, server: Server) -> None:
    jobs = [
        threading.Thread(target=fetched, args=(server.url, tmp_path / "x", 3)) for _ in range(3)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    asked = server.asked  # type: ignore[attr-defined]
    assert len(asked) == len(set(asked)) == -(-len(server.data) // 1000)
    assert held(tmp_path / "x") == FILES


# Unpacking


def archive(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "archive"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("make", [zipped, tarred, lambda f: tarred(f, "w"),
                                  lambda f: tarred(f, "w:xz")])  # fmt: skip
def test_kinds_of_archives(tmp_path: Path, make: Any) -> None:
    files = FILES | {"é/ü.mid": b"MThd", "empty.mid": b"", "./dot.mid": b"x"}
    more = {"__MACOSX/._a.mid": b"x", ".hidden/a.mid": b"x"}
    assert unpack(archive(tmp_path, make(files | more)), tmp_path / "x") == len(files)
    assert held(tmp_path / "x") == {k.removeprefix("./"): v for k, v in files.items()}


@pytest.mark.parametrize("name", ["../evil.mid", "a/../../evil.mid", "/tmp/evil.mid"])
@pytest.mark.parametrize("make", [zipped, tarred])
def test_names_that_lead_out(tmp_path: Path, make: Any, name: str) -> None:
    root = tmp_path / "deep" / "x"
    with pytest.raises(UserError, match="leads out of"):
        unpack(archive(tmp_path, make({"good.mid": b"x", name: b"evil"})), root)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["archive"]


@given(st.text(st.sampled_from("./\\a\0~"), min_size=1, max_size=12))
@settings(max_examples=150, deadline=None)
def test_nothing_leads_out(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.mktemp("out")
    data = archive(folder, tarred({name: b"x"}))
    with suppress(UserError, OSError):  # OSError: a name that no file can have
        unpack(data, folder / "deep" / "x")
    files = [p for p in folder.rglob("*") if p.is_file() and p != data]
    assert all(p.is_relative_to(folder / "deep" / "x") for p in files)


def test_links_are_left_out(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, kind in (("a.mid", tarfile.SYMTYPE), ("b.mid", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            made.addfile(info)
        made.addfile(tarfile.TarInfo("c.mid"))
    assert unpack(archive(tmp_path, out.getvalue()), tmp_path / "x") == 1
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["c.mid"]


@pytest.mark.parametrize("make", [zipped, tarred])
def test_half_unpacked_is_finished(tmp_path: Path, make: Any) -> None:
    path, root = archive(tmp_path, make(FILES)), tmp_path / "x"

    def stop(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(path, root, stop)
    first, second, third = (root / name for name in FILES)
    assert first.is_file()
    assert not third.exists()
    second.write_bytes(b"\0" * second.stat().st_size)  # after a power cut
    assert unpack(path, root) == 3
    assert held(root) == FILES


def bomb(kind: str, path: Path) -> None:
    """An archive of 300 MiB of zeros."""
    with path.open("wb") as out:
        if kind == "zip":
            info = zipfile.ZipInfo("a/x.mid")
            info.compress_type = zipfile.ZIP_DEFLATED
            with zipfile.ZipFile(out, "w") as made, made.open(info, "w") as member:
                for _ in range(300):
                    member.write(bytes(2**20))
        else:
            with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.GNU_FORMAT) as tarball:
                about = tarfile.TarInfo("a/x.mid")
                about.size = 300 * 2**20
                if kind == "a long name":
                    about.type = tarfile.GNUTYPE_LONGNAME
                with open("/dev/zero", "rb") as zeros:
                    tarball.addfile(about, zeros)


@pytest.mark.parametrize("kind", ["zip", "tar", "a long name"])
def test_a_bomb_is_neither_unpacked_nor_read(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / "x"
    bomb(kind, archive)
    tracemalloc.start()
    said = "a header of 314,572,800" if kind == "a long name" else "to more than 314,572,800"
    with pytest.raises(UserError, match=said):
        unpack(archive, tmp_path / "root")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 2**20
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("make", [zipped, tarred])
def test_large_members_are_not_held_in_memory(
    tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, data = tmp_path / "x", os.urandom(2**20) * 40
    archive.write_bytes(make({"a.mid": data}))
    for _ in range(2):
        tracemalloc.start()
        assert unpack(archive, tmp_path / "root") == 1
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10 * 2**20
        assert (tmp_path / "root" / "a.mid").read_bytes() == data
        (tmp_path / "root" / "a.mid").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def test_a_packing_that_python_does_not_know(tmp_path: Path) -> None:
    data = bytearray(zipped({"a.mid": b"x"}))
    for at in (data.find(b"PK\x03\x04") + 8, data.find(b"PK\x01\x02") + 10):
        data[at] = 99
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(UserError, match=r"compression method.*give corpus.root"):
        unpack(tmp_path / "x", tmp_path / "root")


def test_damage_is_named(tmp_path: Path) -> None:
    data = zipped(FILES)
    for bad in (data[:50] + b"\xff" * 20 + data[70:], tarred(FILES)[:-30], data[:-40], b"", b"x"):
        with pytest.raises(UserError, match=r"is damaged|not a zip or tar archive"):
            unpack(archive(tmp_path, bad), tmp_path / "x")


# Google Drive


def test_google_drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gdown

    signature = inspect.signature(gdown.download)
    calls: list[dict[str, Any]] = []

    def fake(*args: Any, **settings: Any) -> str:
        given = signature.bind(*args, **settings).arguments
        calls.append(given)
        given["progress"](10**6, 2 * 10**6)
        Path(given["output"]).write_bytes(zipped(FILES))
        return str(given["output"])

    monkeypatch.setattr(gdown, "download", fake)
    seen = []
    for i, url in enumerate(
        [
            "https://drive.google.com/file/d/1qDk-SH_8/view?usp=sharing",
            "https://drive.google.com/uc?export=download&id=1qDk-SH_8",
            "https://drive.google.com/open?id=1qDk-SH_8",
        ]
    ):
        root = tmp_path / str(i)
        fetched(url, root, 3, lambda *a: seen.append(a))
        assert held(root) == FILES
    assert {call["id"] for call in calls} == {"1qDk-SH_8"}
    assert all(call["resume"] and call.get("url") is None for call in calls)
    assert ("downloading (MB)", 1, 2) in seen
    with pytest.raises(UserError, match="names no file of Google Drive"):
        fetched("https://drive.google.com/drive/my-drive", tmp_path / "y", 3)

    class Quota(gdown.exceptions.FileURLRetrievalError):  # type: ignore[misc]
        pass

    Quota.__module__ = "gdown.exceptions"

    def refuse(**_: Any) -> None:
        raise Quota("Too many users\nhave viewed it")

    monkeypatch.setattr(gdown, "download", refuse)
    with pytest.raises(UserError, match=r"Too many users have viewed it; run .* in a browser"):
        fetched("https://drive.google.com/file/d/1x/view", tmp_path / "z", 3)


def test_gdown_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(UserError, match=r"pip install 'midigenre\[xmidi\]'"):
        fetched("https://drive.google.com/file/d/1x/view", tmp_path / "x", 3)


# The corpus


def test_the_corpus_fetches_its_archive(tmp_path: Path, server: Server) -> None:
    listing = XMIDI(download=True, url=server.url, expected_files=3).songs(tmp_path / "corpora")
    assert sorted(str(s.path) for s in listing.songs) == sorted(
        str(tmp_path / "corpora" / "xmidi" / name) for name in FILES
    )
    assert listing.remarks == []
    root = tmp_path / "mine"
    listing = XMIDI(str(root), download=True, url=server.url, expected_files=3).songs(tmp_path)
    assert held(root) == FILES
    listing = XMIDI(str(root), expected_files=9).songs(tmp_path)
    (remark,) = listing.remarks
    assert "3 MIDI files, the whole archive 9" in remark
    assert XMIDI(str(root)).songs(tmp_path).remarks == []


def test_how_to_get_the_files_is_said(tmp_path: Path) -> None:
    for root in (None, str(tmp_path / "none")):
        with pytest.raises(UserError, match=r"prepare corpus=xmidi corpus\.download=true"):
            XMIDI(root)
    with pytest.raises(UserError, match=r"corpus\.url"):
        XMIDI(download=True)
    with pytest.raises(UserError, match=r"not into s3://music"):
        XMIDI("s3://music/x", download=True, url="https://h.org/x.zip")


def test_a_server_is_not_read_beyond_what_is_allowed(server: Server) -> None:
    server.ranges = server.length = False
    place = location(server.url)
    assert read_bytes(place, 100) == server.data[:100]
    assert read_bytes(place, 10**6) == server.data
    server.status = 404
    with pytest.raises(FileNotFoundError):
        read_bytes(place, 100)
