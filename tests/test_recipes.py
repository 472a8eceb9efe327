"""Every YAML file under conf/ composes and builds; every recipe runs two steps."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from midigenre.build import make_backbone, make_model, make_optim, make_tokenizer, plain
from midigenre.cli import main
from midigenre.corpora.toy import Toy
from midigenre.data.sandbox import read_song
from midigenre.registry import conf_dir
from midigenre.run import settings_of
from midigenre.spec import Batch, LabelSpec
from midigenre.tasks.optim import OneCycleSettings


def choices(group):
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def composed(*overrides, command="train"):
    with initialize_config_dir(str(conf_dir().resolve()), version_base=None):
        return compose(command, overrides=list(overrides), return_hydra_config=False)


@pytest.fixture(scope="module")
def midi(tmp_path_factory):
    listing = Toy(limit=1, n_songs=16).songs(tmp_path_factory.mktemp("toy"))
    return listing.songs[0].path.read_bytes()


@pytest.mark.parametrize("command", [p.stem for p in conf_dir().glob("*.yaml")])
def test_commands_compose(command):
    assert composed(command=command)


@pytest.mark.parametrize(
    ("group", "choice"),
    [
        (folder.name, choice)
        for folder in sorted(conf_dir().iterdir())
        if folder.is_dir()
        for choice in choices(folder.name)
    ],
)
def test_every_choice_composes(group, choice):
    command = {"sampling": "generate", "search": "tune"}.get(group, "train")
    assert composed(f"{group}={choice}", command=command)


@pytest.mark.parametrize("group", ["tokenizer", "model", "optim"])
def test_choices_are_known_by_their_names(group):
    """In the table of ``compare``."""
    for choice in choices(group):
        config = plain(composed(f"{group}={choice}", "name=any"))
        assert settings_of(config)[group] == choice


@pytest.mark.parametrize("name", choices("tokenizer"))
def test_every_tokenizer_feeds_a_model(name, midi):
    tokenizer = make_tokenizer(composed(f"tokenizer={name}"))
    ids = tokenizer.encode(read_song(midi, tokenizer)[0]).ids_TF[:40].astype("int64")
    if tokenizer.spec.bars == "field":
        ids = ids[ids[:, 2] < tokenizer.spec.sizes[2]]
    cfg = composed("model=tiny", "task=genre")
    labels = LabelSpec({"genre": ("a", "b", "c")})
    model = make_model(plain(cfg.model), plain(cfg.task), tokenizer.spec, labels)
    zero = torch.zeros(2, dtype=torch.int64).numpy()
    batch = Batch.from_phrases([ids, ids[:7]], {"genre": zero}, zero, zero)
    assert model(batch)["genre"].shape == (2, 3)


# Parameters of the backbone alone, as the widths and depths of conf/model give them.
@pytest.mark.parametrize("name", choices("model"))
def test_every_model_size_builds(name):
    cfg = composed(f"model={name}")
    with torch.device("meta"):
        backbone = make_backbone(plain(cfg.model), causal=False)
    d, n = cfg.model.d_model, cfg.model.n_layers
    assert make_optim(cfg).lr == cfg.model.lr
    if cfg.model._target_.endswith("LSTM"):
        # Four gates of two directions, each half as wide, with PyTorch's two biases; two norms.
        of_layer = 2 * 4 * (d // 2) * (d + d // 2 + 2)
        assert sum(p.numel() for p in backbone.parameters()) == n * of_layer + 4 * d
        return
    f = cfg.model.d_ff
    layer = 4 * d * d + 4 * d + 2 * d * f + f + d + 4 * d
    final = 2 * d if cfg.model.norm == "pre" else 0
    width = cfg.model.conv_width
    local = width * d * d + d + 2 * d if width else 0
    assert sum(p.numel() for p in backbone.parameters()) == local + n * layer + final


# The slides' LSTM is their recipe with another model.
RECIPES = [*((name,) for name in choices("experiment")), ("slides", "model=lstm")]


@pytest.mark.parametrize("recipe", RECIPES, ids=" ".join)
def test_every_recipe_runs(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, *more = recipe
    # Narrow and short: of the settings nothing but sizes changes.
    small = ["corpus=toy", "trainer.max_steps=2", "trainer.max_epochs=1", "corpus.limit=48",
             "model.d_model=32", "model.n_layers=1", "data.max_tokens=128"]  # fmt: skip
    if composed(f"experiment={name}").init_model:  # it starts from a trained model
        assert main(["train", *small, "name=source"]) == 0
        (source,) = (tmp_path / "runs" / "source").iterdir()
        more.append(f"init_from={source}")
    assert main(["train", f"experiment={name}", *more, *small]) == 0


def test_the_slides_set_up():
    cfg = composed("experiment=slides")
    shape = {"norm": "post", "d_model": 512, "n_layers": 12, "n_heads": 16, "extra_norm": False}
    assert shape.items() <= cfg.model.items()
    assert isinstance(make_optim(cfg), OneCycleSettings)
    assert (make_optim(cfg).lr, cfg.data.batch_phrases, cfg.data.max_tokens) == (1e-4, 64, 1024)
    assert (cfg.trainer.max_epochs, cfg.callbacks.early_stopping) == (50, None)
    assert cfg.task.condition_by == "add"
    assert cfg.data.marks
    for name, changed in (("attention_dropout", 0.3), ("extra_norm", True)):
        variant = composed(f"experiment=slides_{name}")
        assert variant.model == {**cfg.model, name: changed}
        for group in ("optim", "data", "task", "trainer", "callbacks", "tokenizer"):
            assert variant[group] == cfg[group]
    lstm = composed("experiment=slides", "model=lstm")
    assert lstm.model == composed("model=lstm").model
    assert lstm.optim == cfg.optim
