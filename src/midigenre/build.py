"""The only place that turns configuration into objects.

A setting that is out of range, contradictory or missing raises
:class:`~midigenre.errors.UserError`, also where a docstring does not say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from torch import nn

from midigenre import registry
from midigenre.corpora.base import Corpus, Listing, Progress, no_progress
from midigenre.data import splits
from midigenre.data.augment import AugmentSettings
from midigenre.data.labels import LabelSettings
from midigenre.data.phrases import PhraseLength, phrase_length
from midigenre.data.sandbox import Limits
from midigenre.data.shards import ShardSet, open_shards
from midigenre.errors import UserError
from midigenre.models import FieldEmbedding
from midigenre.models.kernels import use_cpu_kernels
from midigenre.models.sequences import Intervals
from midigenre.run import differing
from midigenre.spec import LabelSpec, TokenSpec
from midigenre.storage import location
from midigenre.tasks.kinds import KINDS, ModelKind, ModelParts
from midigenre.tokenizers.base import Tokenizer

# Lightning takes longer to import than a trained model to open: what trains imports it when called,
# and what prepares songs its cluster.
if TYPE_CHECKING:
    import lightning as L

    from midigenre.data.datamodule import PhraseDataModule
    from midigenre.data.prepare import Settings
    from midigenre.tasks.base import Task
    from midigenre.tasks.optim import OptimSettings

T = TypeVar("T")

CHECKPOINT_FORMAT = 3

DATA_KEYS = ("phrase_bars", "phrase_seconds", "max_tokens", "marks", "fold")
"""What a checkpoint stores about its phrases, besides a protocol."""

# Keys of conf/model that do not belong to the backbone's own constructor.
_MODEL_KEYS = ("name", "lr", "combine", "d_field", "pooling", "intervals")


def plain(cfg: Any) -> Any:
    """A config node as plain, resolved data."""
    return OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else cfg


def make(cfg: DictConfig | Mapping[str, Any], what: str, kind: type[T], **arguments: Any) -> T:
    """Instantiates a node, possibly from an untrusted file: what it names is looked up first.

    Args:
        cfg: The node.
        what: Its place in a config, which begins with its group: ``callbacks.checkpoint``.
        kind: The class that it must be of.
        arguments: Passed to its class besides its settings.

    Raises:
        UserError: It names no class of its group, or the class rejects a value or a setting.
    """
    node: Any = cfg
    if OmegaConf.is_config(cfg):
        node = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    group = what.partition(".")[0]
    registry.check(node, group)
    try:
        made = _made({**node, **arguments}, group)
    except (ValueError, TypeError, LookupError, ImportError, AttributeError) as error:
        # Our own classes name the setting, ``optim.lr=-1``; others do not.
        text = str(error)
        raise UserError(text if text.startswith(f"{what}.") else f"{what}: {text}") from error
    if not isinstance(made, kind):
        raise UserError(
            f"{what}: {registry.TARGET}={node.get(registry.TARGET)!r} makes no {kind.__name__}"
        )
    return made


def _made(node: Any, group: str) -> Any:
    """A node with an object in place of every node that names a class.

    Hydra's ``instantiate`` would take text of the form ``${...}`` for an interpolation.
    """
    if isinstance(node, list):
        return [_made(value, group) for value in node]
    if not isinstance(node, Mapping):
        return node
    settings = {key: _made(value, group) for key, value in node.items()}
    if registry.TARGET not in settings:
        return settings
    return registry.find_class(group, settings.pop(registry.TARGET))(**settings)


def make_corpus(cfg: DictConfig) -> Corpus:
    """The corpus of ``cfg.corpus``."""
    return make(cfg.corpus, "corpus", Corpus)


def make_tokenizer(cfg: DictConfig, corpus: Corpus | None = None) -> Tokenizer:
    """The tokenizer of ``cfg.tokenizer``, with the normalisation that the corpus asks for."""
    settings = plain(cfg.tokenizer)
    if corpus is not None and corpus.tracks != "all":
        if settings.get("tracks", "all") not in ("all", corpus.tracks):
            raise UserError(
                f"tokenizer.tracks={settings['tracks']}, but corpus {corpus.name!r} has tracks="
                f"{corpus.tracks}; set corpus.tracks={settings['tracks']}"
            )
        settings["tracks"] = corpus.tracks
    if corpus is not None and corpus.neutral:
        settings["neutral"] = True
    return make(settings, "tokenizer", Tokenizer)


def prepared(
    cfg: DictConfig,
    progress: Progress = no_progress,
    tokenizer: Tokenizer | None = None,
    data: Mapping[str, Any] | None = None,
    any_tokenizer: bool = False,
    check: Callable[[Listing], None] = lambda listing: None,
) -> ShardSet:
    """The shards that the settings ask for, prepared if necessary.

    Args:
        cfg: A composed config; ``cfg.shards`` names a folder to use as it is.
        progress: Called as songs are listed and encoded.
        tokenizer: A run's own, instead of ``cfg.tokenizer``.
        data: A run's own phrase settings, instead of ``cfg.data``.
        any_tokenizer: Accept the folder of ``cfg.shards`` whatever its tokenizer.
        check: Called with what the corpus lists, to reject it before anything is encoded.

    Raises:
        UserError: The shards were encoded with another tokenizer, or cannot be made.
    """
    from midigenre.data.prepare import prepare

    label_settings = LabelSettings.from_config(plain(cfg.labels))
    if cfg.get("shards") is not None:
        if label_settings != LabelSettings():
            raise UserError(f"shards={cfg.shards} is used as it is: set labels.* where it is made")
        shards = open_shards(location(cfg.shards), Path(cfg.home), progress)
        if not any_tokenizer:
            wanted = make_tokenizer(cfg) if tokenizer is None else tokenizer
            _check_same_tokens(shards, wanted.spec, exact=tokenizer is not None)
        return shards
    corpus = make_corpus(cfg)
    phrases = plain(cfg.data) if data is None else data
    tokenizer = make_tokenizer(cfg, corpus) if tokenizer is None else tokenizer
    settings = prepare_settings(cfg, phrase_length(phrases, tokenizer.spec), phrases["max_tokens"])
    return prepare(corpus, plain(cfg.corpus), tokenizer, Path(cfg.home), settings, progress, check)


def prepare_settings(cfg: DictConfig, length: PhraseLength = 4, max_tokens: int = 1024) -> Settings:
    """What a preparation depends on besides corpus and tokenizer; phrases are for its report."""
    from midigenre.data.chunks import Workers
    from midigenre.data.prepare import Settings, default_workers

    how = plain(cfg.prepare)
    return Settings(
        split_seed=cfg.split.seed,
        fractions=tuple(cfg.split.fractions),
        length=length,
        max_tokens=max_tokens,
        labels=LabelSettings.from_config(plain(cfg.labels)),
        grouping=how["grouping"],
        conflicts=how["conflicts"],
        limits=Limits(how["max_file_mb"], how["max_seconds"]),
        workers=Workers(cfg.n_workers or default_workers(), how["backend"], how["scheduler"]),
        folder=how["folder"],
    )


def _check_same_tokens(shards: ShardSet, wanted: TokenSpec, *, exact: bool) -> None:
    """Rejects shards of another tokenizer.

    Unless ``exact``, their corpus decides ``tracks`` and ``neutral`` where the settings do not.
    """
    ignored = {"name"}
    for key, default in (("tracks", "all"), ("neutral", False)):
        if not exact and wanted.tokenizer.get(key, default) == default:
            ignored.add(key)
    theirs, ours = (
        {k: v for k, v in spec.tokenizer.items() if k not in ignored}
        for spec in (shards.tokens, wanted)
    )
    if theirs == ours:
        return
    if shards.tokens.name != wanted.name:
        raise UserError(
            f"shards at {shards.folder} were encoded with tokenizer {shards.tokens.name!r}, not "
            f"{wanted.name!r}; run `midigenre prepare tokenizer={wanted.name}` for others"
            + ("" if exact else f" or set tokenizer={shards.tokens.name}")
        )
    raise UserError(
        f"shards at {shards.folder} were encoded with other settings of {shards.tokens.name!r} "
        f"({', '.join(differing(theirs, ours))}); run `midigenre prepare` with these settings"
    )


def tokens_of(cfg: DictConfig) -> TokenSpec:
    """The vocabulary that a run will have, known before its corpus is prepared."""
    if cfg.shards is not None:
        return open_shards(location(cfg.shards), Path(cfg.home)).tokens
    return make_tokenizer(cfg, make_corpus(cfg)).spec


def class_of(task: Mapping[str, Any]) -> type[Task]:
    """The LightningModule of ``cfg.task``."""
    from midigenre.tasks.base import Task

    found = registry.find_class("task", task["_target_"])
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise UserError(f"task._target_={task['_target_']} is not a midigenre.tasks.base.Task")
    return found


def kind_of(task: Mapping[str, Any]) -> type[ModelKind]:
    """The kind of model that ``cfg.task`` trains; only for a task of one's own it is imported."""
    registry.check(task, "task")
    return KINDS.get(task["_target_"]) or class_of(task).kind


def labels_of(cfg: DictConfig) -> tuple[str, ...]:
    """The labels that the task of a config asks of the songs."""
    task = plain(cfg.task)
    return kind_of(task).labels_of(task)


def check_labels(task: Mapping[str, Any], labels: Iterable[str]) -> None:
    """Rejects a task whose labels the songs do not have."""
    missing = [label for label in kind_of(task).labels_of(task) if label not in labels]
    if missing:
        raise UserError(
            f"task={task['name']} needs the label {missing[0]!r}, but these songs have "
            f"{', '.join(labels)}; name those to learn with task=classify task.labels=[LABEL,...]"
        )


def backbone_settings(model: Mapping[str, Any], causal: bool) -> dict[str, Any]:
    """The settings of ``cfg.model`` for the backbone; bidirectional unless the task is causal."""
    settings = {k: v for k, v in model.items() if k not in _MODEL_KEYS}
    if settings.get("bidirectional", ...) is None:
        settings["bidirectional"] = not causal
    return settings


def has_intervals(model: Mapping[str, Any], causal: bool) -> bool:
    """Whether the embedding of ``cfg.model`` sees intervals; in generation none does."""
    return bool(model["intervals"]) and not causal


def make_backbone(model: Mapping[str, Any], causal: bool) -> Any:
    """The backbone of ``cfg.model``."""
    return make(backbone_settings(model, causal), "model", nn.Module)


def make_model(
    model: Mapping[str, Any],
    task: Mapping[str, Any],
    tokens: TokenSpec,
    labels: LabelSpec,
    counts: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The task's model for a vocabulary and a set of labels.

    Args:
        model: ``cfg.model`` as plain data.
        task: ``cfg.task`` as plain data.
        tokens: From the shards or a checkpoint.
        labels: Likewise.
        counts: Training phrases of each class; None where a checkpoint has the class weights.

    Raises:
        UserError: The data does not have the task's label, or a setting is out of range.
    """
    check_labels(task, labels.classes)
    kind = kind_of(task)
    try:
        backbone = make_backbone(model, kind.causal)
        width: Any = backbone.d_model
        intervals = None
        if has_intervals(model, kind.causal):
            intervals = Intervals(tokens.pitches, tokens.times, width)
        embedding = FieldEmbedding(
            tokens.sizes, width, model["combine"], model["d_field"], model["dropout"], intervals
        )
        parts = ModelParts(embedding, backbone, model["pooling"], tokens, labels, counts)
        return use_cpu_kernels(kind.make_model(task, parts))
    except ValueError as error:
        raise UserError(f"model: {error}") from error


def make_optim(cfg: DictConfig) -> OptimSettings:
    """Optimizer and schedule; the model's size brings its own learning rate."""
    from midigenre.tasks.optim import OptimSettings

    optim = plain(cfg.optim)
    if optim["lr"] is None:
        optim["lr"] = cfg.model.lr
    return make(optim, "optim", OptimSettings)


def make_augment(cfg: DictConfig) -> AugmentSettings:
    """The augmentation of training phrases."""
    return make(cfg.augment, "augment", AugmentSettings)


def protocol_settings(cfg: DictConfig) -> dict[str, Any] | None:
    """What a part of a protocol depends on besides the songs; None for the prepared split."""
    return splits.split_settings(plain(cfg.protocol), plain(cfg.split), labels_of(cfg))


def make_data(cfg: DictConfig, shards: ShardSet) -> PhraseDataModule:
    """The phrases of prepared shards."""
    from midigenre.data.datamodule import PhraseDataModule

    return PhraseDataModule(
        shards,
        **plain(cfg.data),
        seed=cfg.seed,
        fold=cfg.fold,
        task_labels=labels_of(cfg),
        protocol=protocol_settings(cfg),
        augment=make_augment(cfg),
    )


def make_task(cfg: DictConfig, shards: ShardSet, data: PhraseDataModule) -> Task:
    """The LightningModule of a training run."""
    model, task, specs = plain(cfg.model), plain(cfg.task), (shards.tokens, shards.labels)
    made = make_model(model, task, *specs, data.class_counts())
    about = describe_run(model, task, plain(cfg.data), cfg.fold, *specs, data.protocol_settings)
    return class_of(task)(made, make_optim(cfg), about, cfg.seed)


def describe_run(
    model: Mapping[str, Any],
    task: Mapping[str, Any],
    data: Mapping[str, Any],
    fold: str | None,
    tokens: TokenSpec,
    labels: LabelSpec,
    protocol: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Plain data that rebuilds a model, for its checkpoints."""
    phrases = {k: data[k] for k in DATA_KEYS[:-1]} | {"fold": fold}
    return {
        "format": CHECKPOINT_FORMAT,
        "model": dict(model),
        "task": dict(task),
        "data": phrases if protocol is None else phrases | {"protocol": dict(protocol)},
        "tokens": tokens.to_dict(),
        "labels": labels.to_dict(),
    }


def make_trainer(cfg: DictConfig, folder: Path) -> L.Trainer:
    """Lightning's Trainer, with checkpoints and event files in the run's folder."""
    import lightning as L
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import Logger
    from lightning.pytorch.profilers import Profiler

    from midigenre.tasks.callbacks import WholeCheckpoints

    def of_lightning(node: DictConfig, what: str, kind: type[T], **arguments: Any) -> T:
        try:
            return make(node, what, kind, **arguments)
        except MisconfigurationException as error:
            text = str(error).rstrip("!.")
            more = "; trainer=cpu works everywhere" if what == "trainer" else ""
            raise UserError(f"{what}: {text}{more}") from error

    callbacks: list[Callback] = []
    for name, node in (cfg.callbacks or {}).items():
        if node is not None:
            saves = str(node.get("_target_")).endswith("Checkpoint")
            extra = {"dirpath": str(folder / "checkpoints")} if saves else {}
            callbacks.append(of_lightning(node, f"callbacks.{name}", Callback, **extra))
    loggers: list[Logger] = [
        of_lightning(node, f"logger.{name}", Logger, save_dir=str(folder))
        for name, node in (cfg.logger or {}).items()
        if node is not None
    ]
    profiler = None
    if cfg.get("profiler") is not None:
        profiler = of_lightning(cfg.profiler, "profiler", Profiler, dirpath=str(folder))
    return of_lightning(
        cfg.trainer,
        "trainer",
        L.Trainer,
        profiler=profiler,
        precision=cfg.precision.precision,
        callbacks=callbacks,
        logger=loggers or False,
        plugins=[WholeCheckpoints()],
        default_root_dir=str(folder),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        # The batch sampler distributes the batches itself.
        use_distributed_sampler=False,
    )
