"""The adapter of Fréchet Music Distance; the package itself is an extra that needs a network."""

import sys
from types import ModuleType

import pytest
from made_songs import made

from midigenre.errors import UserError
from midigenre.evaluation.music.fmd import check_fmd, frechet_music_distance


def package(score):
    module = ModuleType("frechet_music_distance")

    class FrechetMusicDistance:
        def __init__(self, feature_extractor, gaussian_estimator, verbose):
            assert (feature_extractor, gaussian_estimator) == ("clamp2", "mle")

        def score(self, reference_path, test_path):
            return score(reference_path, test_path)

    module.FrechetMusicDistance = FrechetMusicDistance
    return module


def test_it_is_given_both_sets_as_midi_files(monkeypatch):
    def score(reference_path, test_path):
        assert len(list(reference_path.glob("*.mid"))) == 60
        assert len(list(test_path.glob("*.mid"))) == 50
        return 12.5

    monkeypatch.setitem(sys.modules, "frechet_music_distance", package(score))
    one = made([(0, 4, 60)])
    found = frechet_music_distance([one] * 50, [one] * 60)
    assert found == {
        "distance": 12.5, "model": "clamp2", "estimator": "mle", "n_generated": 50, "n_real": 60,
    }  # fmt: skip


def test_without_the_package_or_its_model_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "frechet_music_distance", None)
    with pytest.raises(UserError, match=r"midigenre\[fmd\]"):
        check_fmd()

    def score(reference_path, test_path):
        raise OSError("no route to host")

    monkeypatch.setitem(sys.modules, "frechet_music_distance", package(score))
    with pytest.raises(UserError, match=r"no route to host.*fmd=false"):
        frechet_music_distance([made([(0, 4, 60)])] * 50, [made([(0, 4, 60)])] * 50)
    with pytest.raises(UserError, match="needs 50 held-out samples"):
        frechet_music_distance([made([(0, 4, 60)])] * 50, [])
