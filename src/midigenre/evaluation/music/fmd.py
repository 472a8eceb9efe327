"""Fréchet Music Distance, from its authors' package.

Retkowski, Stępniak and Modrzejewski 2024, arXiv 2412.07948: the Fréchet distance on embeddings of
CLaMP 2. The package fetches that model's weights when it is first used, so it is an extra, and this
is the only measure here that needs a network.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from midigenre.errors import UserError
from midigenre.evaluation.music.frechet import MIN_SAMPLES
from midigenre.midi.song import Song


def check_fmd() -> None:
    """Refuses before the work what :func:`frechet_music_distance` could not do after it.

    Raises:
        UserError: The package is not installed.
    """
    if find_spec("frechet_music_distance") is None:
        raise UserError('fmd=true needs its package: pip install "midigenre[fmd]"')


def frechet_music_distance(generated: Sequence[Song], real: Sequence[Song]) -> dict[str, Any]:
    """The distance of generated to real music, with its settings.

    Raises:
        UserError: Fewer than :data:`MIN_SAMPLES` pieces or excerpts, or the package cannot get its
            model.
    """
    for what, songs in (("generated", generated), ("held-out", real)):
        if len(songs) < MIN_SAMPLES:
            raise UserError(
                f"a Fréchet Music Distance needs {MIN_SAMPLES} {what} samples or more, there are "
                f"{len(songs)}: give more samples"
            )
    from frechet_music_distance import FrechetMusicDistance

    # The package remembers features by path, so the folders must be new ones.
    with tempfile.TemporaryDirectory(prefix="midigenre-fmd-") as folder:
        for name, songs in (("generated", generated), ("real", real)):
            (Path(folder) / name).mkdir()
            for i, song in enumerate(songs):
                path = Path(folder) / name / f"{i:05d}.mid"
                path.write_bytes(song.to_score().dumps_midi())
        try:
            metric = FrechetMusicDistance("clamp2", "mle", verbose=False)
            score = metric.score(Path(folder) / "real", Path(folder) / "generated")
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"the package frechet-music-distance failed ({error}); it fetches its model when "
                "first used: try with a network, or set fmd=false"
            ) from error
    return {
        "distance": float(score), "model": "clamp2", "estimator": "mle",
        "n_generated": len(generated), "n_real": len(real),
    }  # fmt: skip
