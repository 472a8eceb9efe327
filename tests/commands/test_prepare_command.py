"""``midigenre prepare`` as a person types it: verify, list, clean, grouping, old shards."""

import gc
import json
import shutil
from pathlib import Path

import pytest

from midigenre.data.shards import FORMAT
from midigenre.files import read_json, write_json

SMALL_TOY = ["corpus=toy", "corpus.n_songs=32"]


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    return tmp_path_factory.mktemp("room")


def prepare(midigenre, room, *more):
    status, out, err = midigenre("prepare", *SMALL_TOY, f"home={room}", *more)
    assert status == 0, err
    return Path(out.splitlines()[-1]), err


def test_verify_names_what_is_damaged(midigenre, room):
    folder, err = prepare(midigenre, room, "verify=true")
    assert "all 1 shards are whole" in err
    part = folder / "part-00000.arrow"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    status, _, err = midigenre("prepare", *SMALL_TOY, f"home={room}", "verify=true")
    assert status == 2
    assert f"{part} is damaged" in err
    assert f"midigenre prepare clean={folder.name}" in err
    # What the message says is what mends it.
    gc.collect()  # this process, unlike a person's, has not ended
    status, out, err = midigenre("prepare", f"clean={folder.name}", f"home={room}", "yes=true")
    assert (status, json.loads(out)["name"]) == (0, folder.name), err
    assert prepare(midigenre, room, "verify=true")[0] == folder


@pytest.mark.parametrize("more", [(), ("tokenizer=octuple",)])
def test_verify_a_folder_that_one_was_given(midigenre, room, tmp_path, more):
    folder, _ = prepare(midigenre, room, *more)
    copy = shutil.copytree(folder, tmp_path / "given")
    status, out, err = midigenre("prepare", f"shards={copy}", "verify=true")
    assert (status, out.strip()) == (0, str(copy)), err
    (copy / "manifest.csv").write_bytes((copy / "manifest.csv").read_bytes()[:-30])
    status, _, err = midigenre("prepare", f"shards={copy}", "verify=true")
    assert status == 2
    assert "manifest.csv" in err
    assert "damaged" in err


def test_list_and_clean(midigenre, room):
    folder, _ = prepare(midigenre, room)
    other, _ = prepare(midigenre, room, "tokenizer=octuple")
    status, out, err = midigenre("prepare", "list=true", f"home={room}")
    assert status == 0
    listed = {json.loads(line)["name"]: json.loads(line) for line in out.splitlines()}
    assert {folder.name, other.name} <= set(listed)
    assert (listed[other.name]["songs"], listed[other.name]["state"]) == (32, "finished")
    assert other.name in err

    status, _, err = midigenre("prepare", f"clean={other.name}x", f"home={room}")
    assert status == 2
    assert other.name in err
    status, _, err = midigenre("prepare", "clean=toy-octuple-*", f"home={room}")
    assert status == 2  # nobody to ask
    assert "yes=true" in err
    assert other.is_dir()
    status, out, _ = midigenre("prepare", "clean=toy-octuple-*", f"home={room}", "yes=true")
    assert status == 0
    assert not other.exists()
    assert folder.is_dir()


def test_groupings_make_folders_of_their_own(midigenre, room):
    folders = {
        prepare(midigenre, room, f"prepare.grouping={kind}")[0]
        for kind in ("none", "exact", "near")
    }
    assert len(folders) == 3
    assert prepare(midigenre, room)[0] in folders
    status, _, err = midigenre("prepare", *SMALL_TOY, "prepare.grouping=nearly", f"home={room}")
    assert status == 2
    assert "prepare.grouping=nearly: choose none, exact, near" in err


@pytest.mark.parametrize("version", [FORMAT - 1, FORMAT + 1])
def test_shards_of_other_versions(midigenre, room, tmp_path, version):
    folder, _ = prepare(midigenre, room)
    copy = shutil.copytree(folder, tmp_path / "toy-remi-00000000")
    spec = read_json(copy / "spec.json")
    write_json(copy / "spec.json", spec | {"format": version})
    for words in (["prepare", f"shards={copy}", "verify=true"], ["inspect", f"path={copy}"]):
        status, _, err = midigenre(*words)
        assert status == 2
        assert f"has shard format {version}, this version reads {FORMAT};" in err
        assert "midigenre prepare clean=old" in err


def test_a_bucket_cannot_be_listed_here(midigenre, room):
    status, _, err = midigenre("prepare", "list=true", "prepare.folder=memory://x")
    assert status == 2
    assert "prepare.folder=memory://x" in err
