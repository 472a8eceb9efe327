"""Every YAML file under conf/ composes and builds; every recipe runs two steps."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from midigenre.build import make_backbone, make_model, make_optim, make_tokenizer, plain
from midigenre.cli import conf_dir, main
from midigenre.corpora.toy import Toy
from midigenre.data.batches import collate
from midigenre.data.phrases import Phrases
from midigenre.spec import LabelSpec


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
    assert composed(f"{group}={choice}")


@pytest.mark.parametrize("name", choices("tokenizer"))
def test_every_tokenizer_feeds_a_model(name, midi):
    tokenizer = make_tokenizer(composed(f"tokenizer={name}"))
    ids = tokenizer.encode(tokenizer.read(midi)).ids_TF[:40].astype("int64")
    if tokenizer.spec.bars == "field":
        ids = ids[ids[:, 2] < tokenizer.spec.sizes[2]]
    cfg = composed("model=tiny", "task=genre")
    labels = LabelSpec({"genre": ("a", "b", "c")})
    model = make_model(plain(cfg.model), plain(cfg.task), tokenizer.spec, labels)
    zero = torch.zeros(2, dtype=torch.int64).numpy()
    batch = collate([ids, ids[:7]], {"genre": zero}, Phrases(zero, zero, zero + 4))
    assert model(batch)["genre"].shape == (2, 3)


# Parameters of the backbone alone, as DESIGN.md's widths and depths give them.
@pytest.mark.parametrize("name", choices("model"))
def test_every_model_size_builds(name):
    cfg = composed(f"model={name}")
    with torch.device("meta"):
        backbone = make_backbone(plain(cfg.model), causal=False)
    d, n = cfg.model.d_model, cfg.model.n_layers
    assert make_optim(cfg).lr == cfg.model.lr
    if name == "lstm":  # four gates of two directions, each half as wide, with PyTorch's two biases
        of_layer = 2 * 4 * (d // 2) * (d + d // 2 + 2)
        assert sum(p.numel() for p in backbone.parameters()) == n * of_layer
        return
    f = cfg.model.d_ff
    layer = 4 * d * d + 4 * d + 2 * d * f + f + d + 4 * d
    width = cfg.model.conv_width
    local = width * d * d + d + 2 * d if width else 0
    assert sum(p.numel() for p in backbone.parameters()) == local + n * layer + 2 * d


@pytest.mark.parametrize("name", choices("experiment"))
def test_every_recipe_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status = main(
        ["train", f"experiment={name}", "corpus=toy", "trainer.max_steps=2",
         "trainer.max_epochs=1", "corpus.limit=48"]
    )  # fmt: skip
    assert status == 0
