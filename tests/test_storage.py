"""Places here and in stores: their names, listings, stamps, errors and local copies."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from midigenre import files, storage
from midigenre.corpora.base import SongRef
from midigenre.errors import UserError
from midigenre.files import (
    inside,
    read_bytes,
    read_csv,
    read_json,
    sha256,
    whole,
    write_bytes,
    write_csv,
    write_json,
)
from midigenre.storage import (
    check_writable,
    entries,
    exists,
    is_remote,
    local_copy,
    location,
    place,
    read,
    room,
    stamp,
)
from stores import bucket as bucket
from stores import memory as memory

# Names


@pytest.mark.parametrize("text", ["a/b.mid", "/a/b", ".", "a:b", "x y#?*", "s3", "é☃"])
def test_a_path_stays_a_path(text: str) -> None:
    assert location(text) == Path(text)
    assert isinstance(location(text), Path)
    assert not is_remote(location(text))


def test_a_nul_is_in_no_name() -> None:
    with pytest.raises(UserError, match=r"'a\\x00b' is not a path: it holds a NUL"):
        location("a\0b")


def test_home_and_file_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    assert location("~/x") == Path("/h/x")
    assert location("file:///a/b") == location("FILE:///a/b") == Path("/a/b")
    assert place("~/x") == Path("~/x")


def test_a_url_becomes_a_upath() -> None:
    for text in ("memory://a/b", "s3://bucket/a b/c#1.mid"):
        found = location(text)
        assert isinstance(found, UPath)
        assert is_remote(found)
        assert str(found) == text
        assert place(str(found)) == found == pickle.loads(pickle.dumps(found))
    assert str(location("S3://bucket/A")) == "s3://bucket/A"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("s3:/bucket/x", ["s3:/bucket/x", "s3://bucket/x"]),
        ("gss://bucket", ["'gss'", "did you mean gs://"]),
        ("qwertz://x", ["'qwertz'", "s3://"]),
        ("s3://", ["no bucket", "s3://BUCKET"]),
        ("s3:///x", ["no bucket"]),
        ("zip://a::s3://bucket/x.zip", ["one protocol"]),
        ("simplecache::s3://bucket/x", ["one protocol"]),
    ],
)
def test_slips_are_named(text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        location(text)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(protocol: str) -> None:
        raise ImportError(f"Please install {protocol}fs")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(UserError, match=r"pip install 'midigenre\[s3\]'"):
        location("s3://bucket/x")
    with pytest.raises(UserError, match="Please install gsfs"):
        location("gs://bucket/x")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
@settings(max_examples=200, deadline=None)
def test_the_text_of_a_path_is_the_path(text: str) -> None:
    assert place(str(Path(text))) == Path(text)


# Songs keep the text


def test_a_song_gives_its_place() -> None:
    here = SongRef("a", Path("/x/a.mid"), {"genre": "pop"}, stamp="1:2")
    there = SongRef("b", location("memory://x/b.mid"), {})
    assert (here.path, there.path) == (Path("/x/a.mid"), UPath("memory://x/b.mid"))
    assert str(there.path) == "memory://x/b.mid"
    for song in (here, there):
        assert pickle.loads(pickle.dumps(song)) == song
    with pytest.raises(AttributeError):
        here.path = Path("y")  # type: ignore[misc]


# Listings

NAMES = ("b.mid", "a/z.MID", "a/b/c.midi", "a.mid", "B/x.mid", "a/.h/x.mid", ".x.mid", "a/t.txt",
         "a/b c#1?[x]=é.mid")  # fmt: skip
LISTED = ["a.mid", "b.mid", "B/x.mid", "a/b c#1?[x]=é.mid", "a/z.MID", "a/b/c.midi"]


def fill(root: Any, *names: str) -> None:
    for name in names:
        write_bytes(root / name, name.encode())


def test_one_order_everywhere(tmp_path: Path, memory: UPath, bucket: UPath) -> None:
    for root in (tmp_path, memory / "deep", bucket / "deep"):
        fill(root, *NAMES)
        assert len(list(entries(root))) == len(LISTED) + 1
        found = [entry for entry in entries(root) if entry.is_midi]
        assert [e.name for e in found] == LISTED
        assert [e.size for e in found] == [len(name.encode()) for name in LISTED]
        assert [e.stamp for e in found] == [stamp(place(f"{root}/{e.name}")) for e in found]
        assert [read_bytes(place(f"{root}/{e.name}")).decode() for e in found] == LISTED


def test_a_stamp_changes_with_the_file(tmp_path: Path, memory: UPath, bucket: UPath) -> None:
    for root in (tmp_path, memory, bucket):
        fill(root, "a.mid", "b.mid")
        first = {e.name: e.stamp for e in entries(root)}
        assert {e.name: e.stamp for e in entries(root)} == first
        write_bytes(root / "a.mid", b"A.mid")
        if root == tmp_path:
            os.utime(root / "a.mid", ns=(1, 1))
        second = {e.name: e.stamp for e in entries(root)}
        assert second["a.mid"] != first["a.mid"]
        assert second["b.mid"] == first["b.mid"]


def test_a_listing_costs_one_request(bucket: UPath, requests: list[str]) -> None:
    fill(bucket, *(f"g{i % 3}/{i}.mid" for i in range(30)))
    requests.clear()
    assert len(list(entries(bucket))) == 30
    assert len(requests) == 1, requests
    read_bytes(bucket / "g0/0.mid")
    read_bytes(bucket / "g0/0.mid", 100)
    assert len(requests) == 3, requests


def test_a_listing_of_several_pages(bucket: UPath) -> None:
    from moto.s3.models import s3_backends

    store = s3_backends["123456789012"]["aws"]
    for i in range(1005):  # a page has 1,000
        store.put_object("music", f"many/{i:04d}.mid", b"x")
    assert len(list(entries(bucket / "many"))) == 1005


def test_placeholders_of_folders_are_no_files(bucket: UPath) -> None:
    bucket.fs.touch("music/x/")
    fill(bucket, "x/a.mid")
    assert [e.name for e in entries(bucket / "x")] == ["a.mid"]


def test_links_that_lead_nowhere_and_folders_that_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "b/c.mid", "b/no/d.mid", "file")
    for name, target in {
        "a.mid": "none", "l": "l", "l.mid": "m.mid", "m.mid": "l.mid", "n.mid": "x" * 300,
        "f.mid": "file/x", "z.mid": "/dev/zero",
    }.items():  # fmt: skip
        (tmp_path / name).symlink_to(target)
    os.mkfifo(tmp_path / "p")
    scandir, shut = os.scandir, ["no"]

    def closed(path: str) -> Any:
        if Path(path).name in shut:
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(storage.os, "scandir", closed)
    found = list(entries(tmp_path))
    assert {e.name: str(e.refusal) for e in found if e.refusal} == {
        "a.mid": "missing: no such file or directory",
        "l": "missing: too many levels of symbolic links",
        "l.mid": "missing: too many levels of symbolic links",
        "m.mid": "missing: too many levels of symbolic links",
        "n.mid": "missing: file name too long",
        "f.mid": "missing: not a directory",
        "z.mid": "not_regular: a device, not a regular file",
        "p": "not_regular: a named pipe, not a regular file",
        "b/no": "missing: permission denied",
    }
    assert {e.name for e in found if not e.refusal} == {"file", "b/c.mid"}
    assert all((e.stamp, e.size) == ("", -1) for e in found if e.refusal)
    shut.append(tmp_path.name)
    with pytest.raises(UserError, match=r"cannot read the folder .*: Permission denied"):
        list(entries(tmp_path))


# Errors


def test_no_bucket_no_folder_no_file(bucket: UPath) -> None:
    with pytest.raises(UserError, match=r"s3://none/x: not there .*bucket"):
        list(entries(location("s3://none/x")))
    assert list(entries(bucket / "none")) == []
    with pytest.raises(UserError, match=r"s3://music/none.mid: not there"):
        stamp(bucket / "none.mid")
    fill(bucket, "a.mid")
    with pytest.raises(UserError, match=r"s3://music/a.mid is a file, not a folder"):
        list(entries(bucket / "a.mid"))
    assert exists(bucket / "a.mid")
    assert not exists(bucket / "b.mid")
    with pytest.raises(UserError, match="no listing"):
        list(entries(location("https://localhost/x")))


def test_no_credentials(bucket: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(key)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    bucket.fs.clear_instance_cache()
    with pytest.raises(UserError, match=r"s3://music/x: no credentials .*AWS_ACCESS_KEY_ID"):
        list(entries(location("s3://music/x")))


def test_no_permission_and_no_network(memory: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(error: Exception) -> Any:
        def find(*_: Any, **__: Any) -> None:
            raise error

        return find

    monkeypatch.setattr(type(memory.fs), "find", refuse(PermissionError("Access Denied")))
    with pytest.raises(UserError, match=r"no permission \(Access Denied\); set FSSPEC_MEMORY"):
        list(entries(memory))
    monkeypatch.setattr(type(memory.fs), "find", refuse(ConnectionError("reset")))
    with pytest.raises(UserError, match=r"memory://.*reset; run the command again"):
        list(entries(memory))
    monkeypatch.setattr(type(memory.fs), "find", refuse(TypeError("a defect")))
    with pytest.raises(TypeError):
        list(entries(memory))


# Files


def test_files_of_a_store(memory: UPath, bucket: UPath) -> None:
    for root in (memory, bucket):
        write_json(root / "x/y.json", {"a": "é\udcff"})
        assert read_json(root / "x/y.json") == {"a": "é\udcff"}
        write_csv(root / "x.csv", [{"a": 'say "x",\n'}], ["a", "b"])
        assert read_csv(root / "x.csv") == [{"a": 'say "x",\n', "b": ""}]
        assert sha256(root / "x.csv") == hashlib.sha256(b'a,b\r\n"say ""x"",\n",\r\n').hexdigest()
        write_bytes(root / "empty", b"")
        for name, whole_file in (("x.csv", b'a,b\r\n"say ""x"",\n",\r\n'), ("empty", b"")):
            for n in (1, 10, 1000):
                assert read_bytes(root / name, n) == whole_file[:n]
        for n in (None, 10):
            with pytest.raises(FileNotFoundError):
                read_bytes(root / "none", n)


def test_bytes_are_on_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def sync(handle: int) -> None:
        done.append(os.readlink(f"/proc/self/fd/{handle}"))

    replace = os.replace
    monkeypatch.setattr(files.os, "fsync", sync)
    monkeypatch.setattr(files.os, "replace", lambda a, b: (done.append("name"), replace(a, b)))
    write_bytes(tmp_path / "x", b"data")
    assert [Path(p).parent for p in done[:1]] == [tmp_path]
    assert done[1:] == ["name", str(tmp_path)]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_folder_that_cannot_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = os.fsync

    def sync(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(number, "no")
        real(handle)

    monkeypatch.setattr(files.os, "fsync", sync)
    write_bytes(tmp_path / "x", b"data")
    assert (tmp_path / "x").read_bytes() == b"data"


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_bytes(tmp_path / "x", b"old")
    # Some file systems say so when bytes are written, others when they are synced.
    with pytest.raises(OSError, match="No space left"), whole(tmp_path / "x") as part:  # noqa: PT012
        part.symlink_to("/dev/full")
        part.write_bytes(b"new")
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_song_that_is_gone_and_a_store_that_is(
    tmp_path: Path, bucket: UPath, monkeypatch: pytest.MonkeyPatch, requests: list[str]
) -> None:
    for root in (tmp_path, bucket):
        write_bytes(root / "x", b"data")
        requests.clear()
        assert read(root / "x") == b"data"
        with pytest.raises(FileNotFoundError):
            read(root / "gone")
    assert requests == ["get_object"] * 2
    monkeypatch.setattr(
        bucket.fs, "cat_file", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("reset"))
    )
    with pytest.raises(UserError, match="s3://music/x: reset"):
        read(bucket / "x")


def test_an_error_uploads_nothing(memory: UPath, bucket: UPath) -> None:
    for root in (memory, bucket):
        write_bytes(root / "x", b"old")
        parts = []
        with pytest.raises(RuntimeError), whole(root / "x") as part:  # noqa: PT012
            parts.append(part)
            part.write_bytes(b"half")
            raise RuntimeError
        assert read_bytes(root / "x") == b"old"
        assert not parts[0].parent.exists()


def test_no_bucket_is_made(bucket: UPath) -> None:
    with pytest.raises(FileNotFoundError):
        write_bytes(location("s3://typo/x/y"), b"data")
    assert bucket.fs.ls("") == ["music"]


# Copies


@pytest.fixture
def shards(bucket: UPath) -> UPath:
    folder = bucket / "shards" / "toy-remi"
    fill(folder, "part-0.arrow", "sub/part-1.arrow", "manifest.csv", "spec.json")
    return folder


def wanted(folder: UPath) -> dict[str, str | None]:
    parts = ("part-0.arrow", "sub/part-1.arrow")
    known = {name: hashlib.sha256(read_bytes(folder / name)).hexdigest() for name in parts}
    return {**known, "manifest.csv": None, "spec.json": None}


def test_a_copy_is_made_once(shards: UPath, tmp_path: Path, requests: list[str]) -> None:
    seen: list[tuple[int, int]] = []
    rows = wanted(shards)
    copy = local_copy(shards, tmp_path, rows, lambda _, done, total: seen.append((done, total)))
    assert copy.parent == tmp_path
    assert copy.name.startswith("toy-remi-")
    for name in rows:
        assert (copy / name).read_bytes() == read_bytes(shards / name)
    assert seen == [(i, 4) for i in range(5)]
    requests.clear()
    assert local_copy(shards, tmp_path, rows) == copy
    assert len(requests) == 1, requests  # the listing
    assert local_copy(location(f"{shards}/"), tmp_path, rows) == copy
    assert local_copy(shards.parent, tmp_path, {}) != copy
    assert local_copy(copy, tmp_path, rows) == copy


def test_what_changed_comes_again(shards: UPath, tmp_path: Path) -> None:
    copy = local_copy(shards, tmp_path, wanted(shards))
    before = {p.name: p.stat().st_mtime_ns for p in copy.rglob("*.*") if p.is_file()}
    write_bytes(shards / "part-0.arrow", b"PART-0.arrow")  # of the same size
    write_bytes(shards / "spec.json", b"SPEC.json")
    assert local_copy(shards, tmp_path, wanted(shards)) == copy
    assert (copy / "part-0.arrow").read_bytes() == b"PART-0.arrow"
    assert (copy / "spec.json").read_bytes() == b"SPEC.json"
    for name in ("part-1.arrow", "manifest.csv"):
        path = next(copy.rglob(name))
        assert path.stat().st_mtime_ns == before[name]


def test_what_was_damaged_here_comes_again(shards: UPath, tmp_path: Path) -> None:
    copy = local_copy(shards, tmp_path, wanted(shards))
    (copy / "part-0.arrow").write_bytes(b"PART-0.arrow")
    os.utime(copy / "part-0.arrow", ns=(1, 1))
    (copy / "sub/part-1.arrow").unlink()
    (copy / "manifest.csv").write_bytes(b"refreshed here")
    local_copy(shards, tmp_path, wanted(shards))
    assert (copy / "part-0.arrow").read_bytes() == b"part-0.arrow"
    assert (copy / "sub/part-1.arrow").read_bytes() == b"sub/part-1.arrow"
    assert (copy / "manifest.csv").read_bytes() == b"refreshed here"


def test_a_lost_record_costs_no_download(
    shards: UPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = local_copy(shards, tmp_path, wanted(shards))
    (copy / ".copied.json").unlink()
    monkeypatch.setattr(storage, "_copy_file", lambda source, *_: pytest.fail(str(source)))
    parts = {name: found for name, found in wanted(shards).items() if found}
    local_copy(shards, tmp_path, parts)


def test_what_a_killed_copy_left_goes(shards: UPath, tmp_path: Path) -> None:
    copy = local_copy(shards, tmp_path, wanted(shards))
    left = copy / "sub" / f".part-1.arrow.{2**22 + 1}.part"  # no process has such a number
    left.write_bytes(b"gigabytes")
    local_copy(shards, tmp_path, wanted(shards))
    assert not left.exists()


def test_a_copy_that_is_not_what_it_should_be(shards: UPath, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"part-0.arrow is not the file .* upload"):
        local_copy(shards, tmp_path, {"part-0.arrow": "0" * 64})
    with pytest.raises(UserError, match=r"has no part-9\.arrow"):
        local_copy(shards, tmp_path, {"part-9.arrow": None})
    with pytest.raises(UserError, match="leads out of the folder"):
        local_copy(shards, tmp_path, {"../x": None})
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"] == []


def test_a_read_that_went_wrong_is_repeated(
    shards: UPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = shards.fs.get_file
    calls = []

    def flaky(remote: str, local: str) -> None:
        get(remote, local)
        calls.append(remote)
        if len(calls) == 1:
            Path(local).write_bytes(b"")

    monkeypatch.setattr(shards.fs, "get_file", flaky)
    copy = local_copy(shards, tmp_path, {"part-0.arrow": wanted(shards)["part-0.arrow"]})
    assert (copy / "part-0.arrow").read_bytes() == b"part-0.arrow"
    assert len(calls) == 2


def test_parallel_jobs_copy_once(
    shards: UPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = []
    real = storage._copy_file
    monkeypatch.setattr(storage, "_copy_file", lambda *a: (copied.append(str(a[0])), real(*a))[1])
    rows = wanted(shards)
    jobs = [threading.Thread(target=local_copy, args=(shards, tmp_path, rows)) for _ in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert sorted(copied) == sorted(f"{shards}/{name}" for name in rows)


def test_no_room(tmp_path: Path, shards: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = storage.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(UserError, match=r"0.00 GB free; free some space or set MIDIGENRE_HOME"):
        local_copy(shards, tmp_path, wanted(shards))
    room(tmp_path / "not" / "there", 9, "x")
    room(tmp_path, 0, "nothing")


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("a", True), ("a/b.mid", True), ("AC\\DC.mid", True), ("a..b/..c", True), ("./a", True),
        ("../a", False), ("a/../../b", False), ("/a", False), ("", False), ("/", False),
        ("a/..", False), ("..\\a", False), ("\\a", False), ("a\0b", False),
    ],
)  # fmt: skip
def test_names_that_stay_inside(name: str, good: bool) -> None:
    assert inside(name) is good


@pytest.fixture
def requests(bucket: UPath) -> Iterator[list[str]]:
    """Names of the requests that s3fs makes."""
    made: list[str] = []
    call = type(bucket.fs)._call_s3

    async def counted(self: Any, method: str, *args: Any, **settings: Any) -> Any:
        made.append(method)
        return await call(self, method, *args, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(bucket.fs), "_call_s3", counted)
        yield made


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_writable(tmp_path / "a" / "b", "set out=DIR")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/b: .*file is not a folder; set out=DIR"):
        check_writable(tmp_path / "file" / "b", "set out=DIR")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(UserError, match=rf"cannot write .*a/b: {tmp_path} is not writable; set"):
        check_writable(tmp_path / "a" / "b", "set out=DIR")
