"""A checkpoint takes the place of the one before when it is whole, and not before."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from midigenre.build import make_trainer
from midigenre.tasks.callbacks import WholeCheckpoints

CONFIG = {
    "trainer": {"_target_": "lightning.Trainer", "accelerator": "cpu"},
    "precision": {"precision": "32-true"}, "callbacks": {}, "logger": None,
}  # fmt: skip


def test_the_trainer_writes_by_it(tmp_path: Path) -> None:
    trainer = make_trainer(OmegaConf.create(CONFIG), tmp_path)
    assert isinstance(trainer.strategy.checkpoint_io, WholeCheckpoints)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_leaves_the_one_before(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = tmp_path / "last.ckpt", Path.write_bytes
    plugin = WholeCheckpoints()
    plugin.save_checkpoint({"step": 1}, path)

    def half(part: Path, data: bytes) -> int:
        write(part, bytes(data[: len(data) // 2]))
        raise OSError(number, "full")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="full") as caught:
        plugin.save_checkpoint({"step": 2, "weights": torch.ones(1000)}, path)
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == [path]
    assert plugin.load_checkpoint(path, weights_only=True) == {"step": 1}
