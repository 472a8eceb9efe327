"""Fréchet Music Distance, from its authors' package.

Retkowski, Stępniak and Modrzejewski 2024, arXiv 2412.07948: the Fréchet distance on embeddings of
CLaMP 2. The package fetches that model's weights when it is first used, so it is an extra, and this
is the only measure here that needs a network.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from midigenre.errors import UserError
from midigenre.song import Song


def frechet_music_distance(generated: Sequence[Song], real: Sequence[Song]) -> dict[str, Any]:
    """The distance of generated to real music, with its settings.

    Raises:
        UserError: The package is not installed, or it cannot get its model.
    """
    try:
        from frechet_music_distance import FrechetMusicDistance
    except ImportError as error:
        raise UserError('fmd=true needs its package: pip install "midigenre[fmd]"') from error
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
                f"fmd=true: the model of frechet-music-distance is not to be had ({error}); "
                "set fmd=false"
            ) from error
    return {
        "distance": float(score), "model": "clamp2", "estimator": "mle",
        "n_generated": len(generated), "n_real": len(real),
    }  # fmt: skip
