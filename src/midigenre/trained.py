"""Opens what a training run left: the model with its weights, and what it must be fed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from midigenre.build import CHECKPOINT_FORMAT, class_of, make_model
from midigenre.errors import UserError
from midigenre.models import PhraseClassifier
from midigenre.spec import LabelSpec, TokenSpec
from midigenre.tasks.base import CHECKPOINT_KEY


@dataclass(frozen=True)
class Run:
    """A trained model and what it must be fed.

    Attributes:
        folder: The run's folder; None where only a checkpoint is at hand.
        checkpoint: The checkpoint's path.
        model: The model with its weights, in evaluation mode.
        tokens: Its vocabulary.
        labels: Its class names.
        data: ``phrase_bars`` or ``phrase_seconds``, ``max_tokens``, and the ``fold`` that it was
            trained on (None for all songs).
        config: The resolved training config; None where only a checkpoint is at hand.
    """

    folder: Path | None
    checkpoint: Path
    model: nn.Module
    tokens: TokenSpec
    labels: LabelSpec
    data: Mapping[str, Any]
    config: DictConfig | None

    @property
    def classifier(self) -> PhraseClassifier:
        """The model of a run that :func:`load_run` was asked to open as a classifier."""
        assert isinstance(self.model, PhraseClassifier)
        return self.model


def device_of(name: str) -> torch.device:
    """The device that ``device=`` names.

    Raises:
        UserError: There is no such device here.
    """
    if name not in ("cpu", "cuda"):
        raise UserError(f"device={name}; choose cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: this machine or this torch has no CUDA; set device=cpu")
    return torch.device(name)


def checkpoint_path(run: str | None, ckpt: str) -> tuple[Path | None, Path]:
    """The run's folder and the checkpoint that ``run=`` and ``ckpt=`` name.

    Raises:
        UserError: There is no such run or checkpoint; the message lists what there is.
    """
    named = Path(str(ckpt)).expanduser()
    if ckpt not in ("best", "last"):
        if not named.is_file():
            raise UserError(f"ckpt={ckpt}: no such file; give best, last or a checkpoint's path")
        return (Path(run).expanduser() if run else None), named
    if not run:
        raise UserError("run= is missing; give a run's folder, for instance runs/<name>/<when>")
    folder = Path(run).expanduser()
    if not folder.is_dir():
        raise UserError(f"run={run}: no such folder; trained runs lie in runs/<name>/<when>")
    path = folder / "checkpoints" / f"{ckpt}.ckpt"
    if not path.is_file():
        inside = sorted(str(p.parent.parent) for p in folder.glob("**/checkpoints/best.ckpt"))[:3]
        hint = f"; did you mean {', '.join(inside)}?" if inside else ""
        raise UserError(f"run={run} has no checkpoints/{ckpt}.ckpt{hint}")
    return folder, path


def load_run(run: str | None, ckpt: str = "best", kind: str = "classifier") -> Run:
    """Rebuilds a trained model from its checkpoint alone.

    Args:
        run: The run's folder.
        ckpt: ``best``, ``last`` or a checkpoint's path.
        kind: What it must be (:attr:`midigenre.tasks.base.Task.kind`).

    Raises:
        UserError: There is no such run, the file is no checkpoint of midigenre, or the model is
            of another kind.
    """
    folder, path = checkpoint_path(run, ckpt)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        about = content[CHECKPOINT_KEY]
    except Exception as error:
        raise UserError(f"{path} is no checkpoint of midigenre ({type(error).__name__})") from error
    if about["format"] != CHECKPOINT_FORMAT:
        raise UserError(
            f"{path} has checkpoint format {about['format']}, this version reads "
            f"{CHECKPOINT_FORMAT}; train again or install the version that wrote it"
        )
    found = class_of(about["task"]).kind
    if found != kind:
        raise UserError(
            f"{path} is a {found} (task={about['task']['name']}), and this needs a {kind}; give "
            "another run"
        )
    tokens, labels = TokenSpec.from_dict(about["tokens"]), LabelSpec.from_dict(about["labels"])
    model = make_model(about["model"], about["task"], tokens, labels)
    prefix = "model."
    model.load_state_dict(
        {k[len(prefix) :]: v for k, v in content["state_dict"].items() if k.startswith(prefix)}
    )
    config = None
    if folder is not None and (folder / "config.yaml").is_file():
        loaded = OmegaConf.load(folder / "config.yaml")
        assert isinstance(loaded, DictConfig)
        config = loaded
    return Run(folder, path, model.eval(), tokens, labels, about["data"], config)
