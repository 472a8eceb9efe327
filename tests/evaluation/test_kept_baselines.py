"""Kept baselines predict what fresh ones do, and are taken for no other songs."""

from pathlib import Path

import numpy as np
import pytest
from phrasebook import book

from midigenre.evaluation import baselines as module
from midigenre.evaluation.baselines import (
    BASELINES,
    BASELINES_FOLDER,
    LEVELS,
    ONE_CLASS,
    fit_baselines,
    kept_baselines,
    predict_baselines,
)
from midigenre.evaluation.predictions import DAMAGED, read_arrays

TRUTH = np.r_[np.arange(45) % 3, -1]


@pytest.fixture
def shards(tmp_path):
    (tmp_path / "spec.json").write_text("{}")
    return tmp_path


@pytest.fixture
def fits(monkeypatch):
    """How often something was fitted."""
    calls = []

    def counted(*args):
        calls.append(args)
        return fit_baselines(*args)

    monkeypatch.setattr(module, "fit_baselines", counted)
    return calls


def kept(folder, truth=TRUTH, seed=0, songs=None, **settings):
    reader = book(truth)
    for name, value in ({"max_tokens": None, "marks": False} | settings).items():
        setattr(reader, name, value)
    return kept_baselines(folder, reader, reader.phrases(songs), truth, seed)


def files(folder):
    return sorted((folder / BASELINES_FOLDER).glob("*"))


def test_what_was_kept_predicts_what_was_fitted(shards, fits):
    fitted, read = kept(shards), kept(shards)
    assert len(fits) == 1
    assert (read.n_train, read.n_available) == (fitted.n_train, fitted.n_available)
    test = book(np.arange(12) % 3, seed=2)
    first, second = (
        predict_baselines({"genre": f}, test, test.phrases())["genre"] for f in (fitted, read)
    )
    for level in LEVELS:
        for name in BASELINES:
            assert (first[level][name] == second[level][name]).all()
            arrays, again = (f.models[level][name].arrays for f in (fitted, read))
            assert arrays.keys() == again.keys()
            assert all((arrays[k] == again[k]).all() for k in arrays)


def test_unlabelled_songs_make_no_difference(shards, fits):
    kept(shards)
    kept(shards, songs=np.arange(45))
    assert len(fits) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"truth": np.r_[np.arange(45) % 3, 1]},
        {"truth": np.r_[1, TRUTH[1:]]},
        {"songs": np.arange(44)},
        {"seed": 1},
        {"max_tokens": 7},
        {"marks": True},
    ],
    ids=["a label more", "another label", "other songs", "seed", "max_tokens", "marks"],
)
def test_what_a_fit_depends_on_is_fitted_apart(shards, fits, other):
    kept(shards)
    kept(shards, **other)
    assert len(fits) == len(files(shards)) == 2


def test_shards_that_were_prepared_anew_are_fitted_anew(shards, fits):
    kept(shards)
    (shards / "spec.json").write_text('{"parts": []}')
    kept(shards)
    assert len(fits) == 2


@pytest.mark.parametrize(
    "damage", [b"", b"PK\x03\x04 no zip", None], ids=["empty", "no zip", "cut"]
)
def test_a_damaged_file_is_fitted_anew_and_replaced(shards, fits, caplog, damage):
    kept(shards)
    (path,) = files(shards)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    kept(shards)
    assert len(fits) == 2
    assert str(path) in caplog.text
    assert path.read_bytes() == whole
    kept(shards)
    assert len(fits) == 2


def test_whatever_byte_is_wrong_is_damage_that_is_known(shards, fits):
    kept(shards)
    (path,) = files(shards)
    whole, n_damaged = path.read_bytes(), 0
    for place in range(0, len(whole), 149):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            read_arrays(path)
        except DAMAGED:
            n_damaged += 1
    assert n_damaged > 7


def test_shards_that_are_not_ours_to_touch_are_read(shards, fits, monkeypatch):
    kept(shards)

    def touch(path):
        raise PermissionError(f"{path}: read-only")

    monkeypatch.setattr(Path, "touch", touch)
    kept(shards)
    assert len(fits) == 1


def test_a_folder_that_cannot_be_written_costs_a_line(shards, fits, caplog):
    (shards / BASELINES_FOLDER).write_text("a file where the folder should be")
    kept(shards)
    assert "not kept" in caplog.text
    assert len(fits) == 1


def test_what_could_not_be_fitted_is_not_kept(shards, fits):
    found = kept(shards, np.array([1, 1, -1]))
    assert found.models["song"]["hist_gb"] == ONE_CLASS
    assert files(shards) == []


def test_few_files_are_kept(shards, fits, monkeypatch):
    monkeypatch.setattr(module, "KEPT", 2)
    for seed in (0, 1, 0, 2):  # 1 was read longest ago
        kept(shards, seed=seed)
    assert len(fits) == 3
    assert len(files(shards)) == 2
    kept(shards, seed=0)
    assert len(fits) == 3
