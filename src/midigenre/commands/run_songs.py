"""The songs that a run was trained and tested on."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from midigenre.build import plain, prepared
from midigenre.data.datamodule import PhraseDataModule
from midigenre.data.shards import ShardSet
from midigenre.errors import UserError
from midigenre.registry import reading
from midigenre.run import RunFolder
from midigenre.tokenizers.base import from_spec
from midigenre.trained import Run


def own_shards(trained: Run, home: str, n_workers: int | None, progress: Any) -> ShardSet:
    """A run's own songs, prepared again from its config where the shards are gone.

    Args:
        trained: The run.
        home: Where shards and corpora lie.
        n_workers: Processes that prepare.
        progress: Called as songs are listed and encoded.

    Raises:
        UserError: Only a checkpoint is at hand, or the songs are gone or others than then.
    """
    if trained.config is None:
        raise UserError(
            f"{trained.checkpoint} lies in no run's folder (no config.yaml), so its songs are not "
            "known; give run=runs/<name>/<when>"
        )
    assert trained.folder is not None
    run = RunFolder(trained.folder)
    then = run.shards.name
    config = OmegaConf.merge(trained.config, {"home": home, "n_workers": n_workers})
    assert isinstance(config, DictConfig)
    with reading(run.config_path):
        shards = prepared(config, progress, from_spec(trained.tokens), plain(config.data))
    if shards.folder.name != then:
        raise UserError(
            f"the corpus of {trained.folder} has changed since it was trained (its songs were "
            f"{then}, now they are {shards.folder.name}), and with it the split (or another "
            "version of midigenre prepared it): bring back what was there then, or train again"
        )
    return shards


def own_phrases(shards: ShardSet, trained: Run) -> PhraseDataModule:
    """The phrases of a run's own songs, those of its fold alone."""
    return PhraseDataModule(shards, **trained.data)
