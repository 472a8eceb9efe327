"""What study 05 trains: each part is a few configurations, each one or two trainings in a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One training.

    Attributes:
        overrides: What follows ``midigenre train``.
        share: Its share of the configuration's minutes.
    """

    overrides: tuple[str, ...]
    share: float = 1.0


@dataclass(frozen=True)
class Configuration:
    """Trainings of which each starts from the one before; the last one is measured.

    Attributes:
        name: Name of its rows.
        stages: The trainings.
    """

    name: str
    stages: tuple[Stage, ...]


MLM_SHARE = 0.3
"""Share of the time that goes to pretraining."""


def recipe(*overrides: str, mlm_share: float = MLM_SHARE) -> tuple[Stage, ...]:
    """The recipe: pretraining, then the classifier; without the first where its share is 0."""
    last = Stage(("experiment=genre_best", *overrides), 1 - mlm_share)
    if not mlm_share:
        return (last,)
    shared = [o for o in overrides if o.partition(".")[0].partition("=")[0] in _SHARED]
    return Stage(("experiment=mlm_best", *shared), mlm_share), last


PLAIN = {"augment": "standard", "task.mlm_weight": 0, "task.song": "mean"}
"""Where the ablations start: the recipe without what they are about."""
STRONG = {"augment": "strong", "task.mlm_weight": 0.3}


def _overrides(settings: Mapping[str, object]) -> list[str]:
    return [f"{key}={value}" for key, value in settings.items()]


_SHARED = ("tokenizer", "model", "data", "augment")
"""Groups whose overrides hold for pretraining too."""


def _parts() -> dict[str, tuple[Configuration, ...]]:
    scratch = Configuration("from scratch", recipe(mlm_share=0))
    tenth = ("fold=1/10", "task.mlm_weight=0")
    toy = (
        "corpus=toy",
        "corpus.n_songs=192",
        "tokenizer=octuple",
        "data.phrase_bars=8",
        "trainer.max_epochs=8",
        "callbacks.early_stopping=null",
    )
    return {
        "recipe": (Configuration("genre_best", recipe()), scratch),
        # The labelled songs are a hashed tenth of training and validation; pretraining sees the
        # notes of all training songs. Equal minutes in all. No auxiliary loss, which is masked
        # modelling too.
        "few_labels": (
            Configuration("pretrained", recipe(*tenth, mlm_share=0.6)),
            Configuration("from scratch", recipe(*tenth, mlm_share=0)),
        ),
        "tokenizers": tuple(
            Configuration(name, recipe(f"tokenizer={name}")) for name in ("octuple", "cp", "remi")
        ),
        # One thing less, or one more, than a plain start; then what helped, together.
        "ablations": tuple(
            Configuration(name, recipe(*_overrides(PLAIN | changes), mlm_share=0))
            for name, changes in {
                "plain": {},
                "no augmentation": {"augment": "none"},
                "strong augmentation": {"augment": "strong"},
                "4 bars": {
                    "data.phrase_bars": 4,
                    "data.phrases_per_song": 8,
                    "data.batch_phrases": 64,
                },
                "16 bars": {
                    "data.phrase_bars": 16,
                    "data.phrases_per_song": 2,
                    "data.batch_phrases": 16,
                },
                "auxiliary MLM": {"task.mlm_weight": 0.3},
                "averaged weights": {"callbacks.average.decay": 0.995},
                "dropout 0.3": {"model.dropout": 0.3},
                "narrow": {"model.d_field": 32, "model.conv_width": 4},
                "no convolution": {"model.conv_width": 0},
                "mean pooling": {"model.pooling": "mean"},
                "attention pooling": {"model.pooling": "attention"},
                "learned positions": {"model.positions": "learned"},
                "balanced classes": {"data.balance": 1, "task.class_weight_power": 0},
                "no class weights": {"task.class_weight_power": 0},
                "strong, MLM": STRONG,
            }.items()
        ),
        # The mechanics of several labels, on a corpus whose labels follow rules.
        "multitask": tuple(
            Configuration(name, (Stage((f"task={task}", *toy, *more)),))
            for name, task, more in (
                ("genre alone", "genre", ()),
                ("emotion alone", "emotion", ()),
                ("genre and emotion", "genre_emotion", ()),
                ("genre, emotion and MLM", "genre_emotion", ("task.mlm_weight=0.3",)),
            )
        ),
    }


PARTS: dict[str, tuple[Configuration, ...]] = _parts()
"""The configurations of each part of the study."""


def clock(minutes: float) -> str:
    """Minutes as ``trainer.max_time`` takes them."""
    seconds = round(60 * minutes)
    return f"00:{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def command(
    stage: Stage, minutes: float | None, seed: int, folder: str, init_from: str | None,
    more: Sequence[str],
) -> list[str]:  # fmt: skip
    """What follows ``midigenre train`` for one stage.

    Args:
        stage: The stage.
        minutes: Time of the whole configuration; None where the stage says its end itself.
        seed: Seed of the training.
        folder: Its run folder.
        init_from: The run before; None for the first.
        more: Overrides of the whole study, for instance the corpus.
    """
    timed = [] if minutes is None else [f"trainer.max_time={clock(minutes * stage.share)}"]
    start = [] if init_from is None else [f"init_from={init_from}"]
    return [*stage.overrides, *timed, f"seed={seed}", f"hydra.run.dir={folder}", *start, *more]
