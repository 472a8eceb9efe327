"""Opens a trained run: the model with its weights, and the settings of its input."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from torch import Tensor, nn

from midigenre import registry
from midigenre.build import (
    CHECKPOINT_FORMAT,
    DATA_KEYS,
    backbone_settings,
    has_intervals,
    kind_of,
    make_model,
    plain,
    prepared,
)
from midigenre.data.shards import ShardSet
from midigenre.errors import UserError
from midigenre.files import read_json
from midigenre.models import MaskedHead, PhraseClassifier
from midigenre.registry import reading
from midigenre.run import EXPORTED, EXPORTED_ABOUT, RunFolder, differing
from midigenre.spec import LabelSpec, TokenSpec
from midigenre.tasks.kinds import CHECKPOINT_KEY
from midigenre.tokenizers.base import from_spec

_OTHER = "give another checkpoint, for instance ckpt=best or ckpt=last of its run"

_TRAINING = (
    "state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "epoch", "global_step",
    "pytorch-lightning_version",
)  # fmt: skip
"""What a Lightning checkpoint holds besides the model."""

HUB = "hf://"
"""What the place of an exported model on the Hugging Face Hub begins with."""

SHARED = ("embedding", "backbone")
"""The parts that every task's model has under these names."""

# What to do where there is no run of a kind.
_HOW = {"generator": "midigenre train task=generate", "classifier": "midigenre train"}

# Settings of conf/model that may differ between models that share these parts' weights.
_NOT_SHARED = ("name", "lr", "pooling", "dropout", "attention_dropout")


@dataclass(frozen=True)
class Run:
    """A trained model and the settings of its input.

    Attributes:
        folder: The run's folder; None where there is only a checkpoint.
        checkpoint: The checkpoint's path.
        model: The model with its weights, in evaluation mode.
        tokens: Its vocabulary.
        labels: Its class names.
        data: ``phrase_bars`` or ``phrase_seconds``, ``max_tokens``, and the ``fold`` that it was
            trained on (None for all songs).
        config: The resolved training config; None where only a checkpoint is at hand.
        task: ``cfg.task`` of its training as plain data.
        epoch: The epoch after which the checkpoint was written, from 1; 0 if it does not say.
        step: The step after which it was.
    """

    folder: Path | None
    checkpoint: Path
    model: nn.Module
    tokens: TokenSpec
    labels: LabelSpec
    data: Mapping[str, Any]
    config: DictConfig | None
    task: Mapping[str, Any] = field(default_factory=dict)
    epoch: int = 0
    step: int = 0

    @property
    def kind(self) -> str:
        """Its kind (:attr:`midigenre.tasks.kinds.ModelKind.name`)."""
        return kind_of(self.task).name

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


def checkpoint_path(run: str | None, ckpt: str, key: str = "run") -> tuple[Path | None, Path]:
    """The run's folder and the checkpoint that ``run=`` and ``ckpt=`` name.

    Args:
        run: The run's folder, an exported model's, or its place on the Hub, ``hf://USER/NAME``.
        ckpt: ``best``, ``last`` or a checkpoint's path.
        key: The setting that names the run.

    Raises:
        UserError: There is no such run or checkpoint; the message lists what there is.
    """
    named = Path(str(ckpt)).expanduser()
    if ckpt not in ("best", "last"):
        if not named.is_file():
            raise UserError(f"ckpt={ckpt}: no such file; give best, last or a checkpoint's path")
        return (Path(run).expanduser() if run else None), named
    if not run:
        raise UserError(f"{key}= is missing; give a run's folder, for instance runs/<name>/<when>")
    folder = _from_hub(run, key) if run.startswith(HUB) else Path(run).expanduser()
    if folder.is_file():
        of = {"run": "ckpt", "judge": "judge_ckpt"}.get(key, key)
        raise UserError(f"{key}={run} is a file; give the run's folder, or {of}={run}")
    if not folder.is_dir():
        raise UserError(f"{key}={run}: no such folder; trained runs lie in runs/<name>/<when>")
    path = folder / "checkpoints" / f"{ckpt}.ckpt"
    if (exported := folder / EXPORTED).is_file() and not path.is_file():
        if ckpt == "last":
            raise UserError(f"{key}={run} is an exported model, which has no ckpt=last")
        return folder, exported
    if not path.is_file():
        inside = sorted(str(p.parent.parent) for p in folder.glob("**/checkpoints/best.ckpt"))[:3]
        hint = f"; did you mean {', '.join(inside)}?" if inside else ""
        raise UserError(f"{key}={run} has no checkpoints/{ckpt}.ckpt{hint}")
    return folder, path


def _from_hub(url: str, key: str) -> Path:
    """Downloads an exported model, or finds it in the Hub's cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(url.removeprefix(HUB)))
    except Exception as error:  # also those of the HTTP client that it happens to use
        said = " ".join(str(error).split())[:300]
        raise UserError(f"{key}={url}: {said}") from error


def describe_checkpoint(path: Path) -> dict[str, Any]:
    """What is needed to rebuild the model of a checkpoint, as plain data.

    Raises:
        UserError: The file is not a checkpoint of midigenre.
    """
    return _content(path)[0]


def load_run(
    run: str | None,
    ckpt: str = "best",
    kind: str | Sequence[str] = "classifier",
    key: str = "run",
) -> Run:
    """Rebuilds a trained model from its checkpoint alone.

    Args:
        run: The run's folder.
        ckpt: ``best``, ``last`` or a checkpoint's path.
        kind: What it must be (:attr:`midigenre.tasks.kinds.ModelKind.name`), or one of several.
        key: The setting that names the run.

    Raises:
        UserError: There is no such run, the file is not a checkpoint of midigenre, or the model is
            of another kind.
    """
    folder, path = checkpoint_path(run, ckpt, key)
    about, content = _content(path)
    found = kind_of(about["task"]).name
    kinds = [kind] if isinstance(kind, str) else list(kind)
    if found not in kinds:
        kind = kinds[0]
        there = _runs_of(kind, folder)
        hint = f"there is {', '.join(there)}" if there else f"train one: {_HOW[kind]}"
        raise UserError(
            f"{key}={run or path} is a {found} (task={about['task']['name']}), and this needs a "
            f"{kind}; {hint}"
        )
    with reading(path, _OTHER):
        tokens, labels = TokenSpec.from_dict(about["tokens"]), LabelSpec.from_dict(about["labels"])
        model = make_model(about["model"], about["task"], tokens, labels)
        model.load_state_dict(_below(content["state_dict"], "model"))
    run_folder = None if folder is None else RunFolder(folder)
    config = run_folder.as_config() if run_folder is not None and run_folder.has_config else None
    written = content.get("epoch", -1) + 1, content.get("global_step", 0)
    return Run(
        folder, path, model.eval(), tokens, labels, about["data"], config, about["task"], *written
    )


def own_shards(trained: Run, home: str, n_workers: int | None, progress: Any) -> ShardSet:
    """The songs that a run was trained and tested on, prepared again where the shards are gone.

    Args:
        trained: The run.
        home: Where shards and corpora lie.
        n_workers: Processes that prepare.
        progress: Called as songs are listed and encoded.

    Raises:
        UserError: There is only a checkpoint, or the songs are gone or have changed.
    """
    if trained.config is None or trained.folder is None:
        raise UserError(
            f"{trained.checkpoint} lies in no run's folder (no config.yaml), so its songs are not "
            "known; give run=runs/<name>/<when>"
        )
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


def _runs_of(kind: str, folder: Path | None) -> list[str]:
    """Finished runs of a kind beside a run, ``runs/*/*``, at most five, the newest first."""
    found: list[str] = []
    beside = [] if folder is None else folder.parent.parent.glob("*/*/config.yaml")
    for path in sorted(beside, key=lambda p: p.stat().st_mtime, reverse=True):
        with contextlib.suppress(Exception):  # a damaged config of another run
            is_kind = kind_of(RunFolder(path.parent).config["task"]).name == kind
            if is_kind and (path.parent / "checkpoints" / "best.ckpt").is_file():
                found.append(str(path.parent))
        if len(found) == 5:  # a home may have thousands
            break
    return found


def _content(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A checkpoint's description of its model, and its whole content; it may be untrusted."""
    try:
        if path.name == EXPORTED:
            content = read_json(path.with_name(EXPORTED_ABOUT))
            content["state_dict"] = {f"model.{k}": v for k, v in load_file(path).items()}
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
        about = content[CHECKPOINT_KEY]
    except Exception as error:
        raise UserError(
            f"{path} is not a checkpoint of midigenre, or is damaged ({type(error).__name__}); "
            f"{_OTHER}"
        ) from error
    with reading(path, _OTHER):
        if about["format"] != CHECKPOINT_FORMAT:
            raise UserError(
                f"{path} has checkpoint format {about['format']}, this version reads "
                f"{CHECKPOINT_FORMAT}; train again or install the version that wrote it"
            )
        for group, node in (
            ("model", about["model"]), ("task", about["task"]),
            ("tokenizer", about["tokens"]["tokenizer"]),
        ):  # fmt: skip
            registry.check(node, group)
            if not isinstance(node.get("name"), str):
                raise ValueError(f"its {group} has no name")
        if not set(DATA_KEYS) <= about["data"].keys() <= {*DATA_KEYS, "protocol"}:
            raise ValueError(f"its data is {about['data']}")
        for key in ("phrase_bars", "phrase_seconds", "max_tokens"):
            size = about["data"][key]
            if not (size is None or (type(size) in (int, float) and size > 0)):
                raise ValueError(f"its data has {key}={size}")
        if not all(isinstance(value, Tensor) for value in content["state_dict"].values()):
            raise ValueError("its state_dict holds more than weights")
    return about, content


def check_last(path: Path, cfg: DictConfig, run: RunFolder) -> None:
    """Rejects an incomplete or foreign checkpoint when a run is to be resumed.

    Args:
        path: Its ``last.ckpt``.
        cfg: Its config.
        run: Its folder.

    Raises:
        UserError: The file is damaged, or another run's.
    """
    remedy = "delete it to start the run over, or train a new one with init_from="
    about, content = _content(path)
    with reading(path, remedy):
        for what, expected in (
            ("model", plain(cfg.model)), ("task", plain(cfg.task)), ("tokens", run.spec["tokens"]),
            ("labels", run.spec["labels"]),
        ):  # fmt: skip
            if about[what] != expected:
                different = [] if what == "tokens" else differing(about[what], expected)
                raise UserError(
                    f"{path} is of another run: other {what} {', '.join(different)}; {remedy}"
                )
    missing = [key for key in _TRAINING if key not in content]
    if missing:
        raise UserError(f"{path} has no {missing[0]}, so no training can resume from it; {remedy}")
    with reading(path, remedy):
        own = path.parent.resolve()
        for state in content["callbacks"].values():
            # Lightning deletes the files that these name once a better checkpoint exists, if they
            # seem to lie in the folder of the checkpoints.
            named = [v for k, v in state.items() if k.endswith("_model_path")]
            for name in map(Path, (*named, *state.get("best_k_models", ()))):
                deeper = own in name.parents and name.parent != own
                if deeper or ".." in name.parts or (name.parts[:1] and name.parts[0].endswith(":")):
                    raise ValueError(f"it names {name} as a checkpoint of its own")


def _below(weights: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    prefix = f"{part}."
    return {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}


# --- a model that starts from another one ---------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """Weights of a trained model that another one starts from.

    Attributes:
        checkpoint: Where they are from.
        weights: For each part of :data:`SHARED` its weights by their name.
        masked_head: Weights of a head of masked modelling; empty if there was none.
    """

    checkpoint: Path
    weights: Mapping[str, Mapping[str, Tensor]]
    masked_head: Mapping[str, Tensor] = field(default_factory=dict)

    def load_into(self, model: nn.Module) -> dict[str, int]:
        """Puts them into a model whose settings :func:`start_from` was given.

        The head of masked modelling is taken where the model predicts the same fields.

        Returns:
            Number of parameters of each part that was taken over, by its name.
        """
        parts = [(part, model.get_submodule(part), self.weights[part]) for part in self.weights]
        head = next((m for m in model.modules() if isinstance(m, MaskedHead)), None)
        if head is not None and self.masked_head.keys() == head.state_dict().keys():
            parts.append(("masked head", head, self.masked_head))
        with reading(self.checkpoint, _OTHER):
            for _, module, weights in parts:
                module.load_state_dict(weights)
        return {part: sum(p.numel() for p in module.parameters()) for part, module, _ in parts}


def start_from(
    source: str, model: Mapping[str, Any], task: Mapping[str, Any], tokens: TokenSpec
) -> Start:
    """Embedding and backbone of a trained model of any task, for a new one to start from.

    Args:
        source: A run's folder, whose best checkpoint counts, or a checkpoint: ``init_from=``.
        model: ``cfg.model`` of the new model as plain data.
        task: Its ``cfg.task`` as plain data.
        tokens: Its vocabulary.

    Raises:
        UserError: There is no such run, the file is not a checkpoint of midigenre, or its weights
            mean something else: another vocabulary, another backbone, an LSTM of the other
            direction.
    """
    named = Path(source).expanduser()
    path = named if named.is_file() else checkpoint_path(source, "best", "init_from")[1]
    about, content = _content(path)
    with reading(path, _OTHER):
        reason = _other_vocabulary(TokenSpec.from_dict(about["tokens"]), tokens)
        reason = reason or _other_backbone(about, model, task)
        if reason:
            raise UserError(f"init_from: {path} {reason}")
    weights = _below(content["state_dict"], "model")
    # Where it lies in a classifier, else in a masked model; other heads have no norm.
    head = _below(weights, "masked.head") or _below(weights, "head")
    masked_head = head if "norm.weight" in head else {}
    return Start(path, {part: _below(weights, part) for part in SHARED}, masked_head)


def _other_vocabulary(theirs: TokenSpec, ours: TokenSpec) -> str | None:
    """How the vocabulary of a checkpoint differs, as the end of a sentence; None if it does not."""
    there, here = (
        {k: v for k, v in spec.to_dict()["tokenizer"].items() if k != "name"}
        for spec in (theirs, ours)
    )
    if theirs.fields == ours.fields and there == here:
        return None
    if theirs.name != ours.name:
        return (
            f"was trained on tokenizer {theirs.name!r}, this is {ours.name!r}; "
            f"set tokenizer={theirs.name} or give another run"
        )
    different = differing(there, here) or [
        f"{theirs.n_tokens} tokens there, {ours.n_tokens} here, by another version of midigenre"
    ]
    return (
        f"was trained with other settings of tokenizer {ours.name!r} ({', '.join(different)}); set "
        "the same (tracks and neutral come with the corpus) or give another run"
    )


def _other_backbone(
    about: Mapping[str, Any], model: Mapping[str, Any], task: Mapping[str, Any]
) -> str | None:
    """How the backbone of a checkpoint differs, likewise."""
    other = about["model"]
    if other["_target_"] != model["_target_"]:
        return (
            f"has the backbone {other['_target_']} (model={other['name']}), this is "
            f"{model['_target_']} (model={model['name']}); set model={other['name']} or give "
            "another run"
        )
    causal = kind_of(task).causal
    theirs, ours = (
        dict(of) | backbone_settings(of, way) | {"intervals": has_intervals(of, way)}
        for of, way in ((other, kind_of(about["task"]).causal), (model, causal))
    )
    if theirs.get("bidirectional") != ours.get("bidirectional"):
        needed, made = (
            ("two directions", "one") if ours["bidirectional"] else ("one direction", "two")
        )
        return (
            f"is an LSTM that has {made} and task={task['name']} needs {needed}: weights of one do "
            "not serve the other; give a run whose task needs the same, or train both with an "
            "encoder (model=tiny), which serves both"
        )
    for settings in (theirs, ours):
        for name in _NOT_SHARED:
            settings.pop(name, None)
        if settings.get("positions") == "rope":  # has no limit and ignores it
            settings.pop("max_positions", None)
    if theirs == ours:
        return None
    remedy = "set the same or give another run"
    if causal and theirs["intervals"]:
        remedy = "a generator sees no intervals: give a run trained with model.intervals=false"
    return f"has another backbone ({', '.join(differing(theirs, ours))}); {remedy}"


def finetuned(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The config of a run that may start from another one.

    With ``init_model`` model and tokenizer are those of the run of ``init_from``, except for what
    the command line says about them; a recipe's own are overridden, as defaults are.

    Args:
        cfg: The composed config.
        overrides: The command line's, as Hydra has them: ``model=small``, ``model.dropout=0.2``.

    Returns:
        ``cfg``, or a changed copy.

    Raises:
        UserError: There is no such run; a setting needs one; ``freeze_layers`` does not fit.
    """
    from midigenre.tasks.optim import check_frozen  # imports Lightning, and only training needs it

    source, freeze_layers = cfg.init_from, cfg.freeze_layers or 0
    layer_decay = cfg.optim.get("layer_decay", 1.0)
    if source is None:
        for key, is_on, value in (
            ("freeze_layers", freeze_layers != 0, freeze_layers),
            ("init_model", cfg.init_model, "true"),  # what experiment=finetune is about
            ("optim.layer_decay", layer_decay != 1, layer_decay),
        ):
            if is_on:
                raise UserError(
                    f"{key}={value} needs the weights of a trained model; add init_from=RUN, for "
                    "instance a run of: midigenre train task=mlm"
                )
    elif cfg.init_model:
        cfg = _with_model_of(source, cfg, overrides)
    check_frozen(freeze_layers, cfg.model.n_layers)
    return cfg


def _with_model_of(source: str, cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    given = [override.lstrip("+~").partition("=")[0] for override in overrides]
    parts = [part for part in ("model", "tokenizer") if part not in given]
    run = RunFolder.of(source)
    if not run.has_config:
        if not Path(source).expanduser().is_file():
            checkpoint_path(source, "best", "init_from")  # says what is missing
        raise UserError(
            f"init_from={source}: there is no {run.config_path} to say its model and tokenizer; "
            "add init_model=false model=X tokenizer=Y"
        )
    with reading(run.config_path):
        for part in parts:
            registry.check(run.config[part], part)
    theirs, changed = run.as_config(), copy.deepcopy(cfg)
    OmegaConf.set_struct(changed, False)
    for part in parts:
        changed[part] = theirs[part]
        for key in given:
            if key.startswith(f"{part}."):
                OmegaConf.update(changed, key, OmegaConf.select(cfg, key))
    OmegaConf.set_struct(changed, True)
    return changed
