"""``init_from``: which weights a new model may start from, and which it must refuse."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from midigenre.build import describe_run, make_model, make_tokenizer, plain
from midigenre.errors import UserError
from midigenre.models import MaskedHead
from midigenre.registry import conf_dir
from midigenre.spec import LabelSpec, TokenSpec
from midigenre.tasks.base import CHECKPOINT_KEY
from midigenre.trained import load_run, start_from

LABELS = LabelSpec({"genre": ("a", "b", "c")})


class Made:
    """A model as a run with these overrides would begin with it."""

    def __init__(self, *overrides, seed=0):
        with initialize_config_dir(str(conf_dir().resolve()), version_base=None):
            cfg = compose("train", overrides=["model.d_model=32", "model.n_layers=2", *overrides])
        self.settings, self.task, self.data = plain(cfg.model), plain(cfg.task), plain(cfg.data)
        self.tokens = make_tokenizer(cfg).spec
        torch.manual_seed(seed)
        self.model = make_model(self.settings, self.task, self.tokens, LABELS)

    def save(self, path, **changed):
        about = (
            describe_run(self.settings, self.task, self.data, None, self.tokens, LABELS) | changed
        )
        weights = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({CHECKPOINT_KEY: about, "state_dict": weights}, path)

    def start(self, source):
        return start_from(str(source), self.settings, self.task, self.tokens)


PLAIN = ("model.intervals=false",)  # as a generator is


@pytest.mark.parametrize(
    ("there", "here"),
    [
        (PLAIN, ("task=generate",)),
        (
            ("task=generate", "task.condition_by=add"),
            (*PLAIN, "model.pooling=cls", "model.dropout=0.5"),
        ),
        ((*PLAIN, "tokenizer=octuple"), ("tokenizer=octuple", "task=generate", "model.lr=1")),
        (("model=lstm", "task=generate"), ("model=lstm", "task=generate", "task.conditions=[]")),
        (("model=lstm",), ("model=lstm", "task.class_weight_power=0")),
        (
            (*PLAIN, "model.max_positions=9"),
            ("task=generate",),
        ),  # rotary positions do not ask for it
        (("task=mlm",), ()),
        ((*PLAIN, "task=mlm", "tokenizer=octuple"), ("task=generate", "tokenizer=octuple")),
        (("task=generate",), (*PLAIN, "task=mlm", "task.strategy=bar")),
        (("task=mlm", "model=lstm"), ("model=lstm",)),
    ],
)
def test_embedding_and_backbone_are_taken_over_and_nothing_else(there, here, tmp_path):
    old, new, untouched = Made(*there, seed=1), Made(*here), Made(*here)
    old.save(tmp_path / "run" / "checkpoints" / "best.ckpt")
    start = new.start(tmp_path / "run")
    n_loaded = sum(start.load_into(new.model).values())
    shared = ("embedding.", "backbone.")
    found, before, theirs = (made.model.state_dict() for made in (new, untouched, old))
    assert {name.split(".")[0] for name in found} > {"embedding", "backbone"}
    for name, value in found.items():
        expected = theirs if name.startswith(shared) else before
        assert torch.equal(value, expected[name]), name
    assert any(not torch.equal(found[n], before[n]) for n in found if n.startswith("backbone."))
    assert n_loaded == sum(
        p.numel() for n, p in new.model.named_parameters() if n.startswith(shared)
    )


OCTUPLE = ("tokenizer=octuple",)
BESIDE = (*OCTUPLE, "task.mlm_weight=0.3")


@pytest.mark.parametrize(
    ("there", "here", "taken"),
    [
        ((*OCTUPLE, "task=mlm"), BESIDE, True),
        (BESIDE, (*OCTUPLE, "task=mlm"), True),
        (BESIDE, BESIDE, True),
        ((*OCTUPLE, "task=mlm", "task.structure=true"), BESIDE, False),  # it has more fields
        ((*OCTUPLE, "task=generate"), (*BESIDE, *PLAIN), False),
    ],
    ids=["pretrained", "back", "beside", "other fields", "another head"],
)
def test_the_head_of_masked_modelling_goes_along(there, here, taken, tmp_path):
    old, new, untouched = Made(*there, seed=1), Made(*here), Made(*here)
    old.save(tmp_path / "best.ckpt")
    loaded = new.start(tmp_path / "best.ckpt").load_into(new.model)
    assert list(loaded) == ["embedding", "backbone"] + taken * ["masked head"]

    def head(made):
        (found,) = (m for m in made.model.modules() if isinstance(m, MaskedHead))
        return found.state_dict()

    expected = head(old if taken else untouched)
    assert all(torch.equal(value, expected[name]) for name, value in head(new).items())
    shared = ("embedding.", "backbone.") + taken * ("head.", "masked.head.")
    assert sum(loaded.values()) == sum(
        p.numel() for n, p in new.model.named_parameters() if n.startswith(shared)
    )


def test_a_checkpoint_does_as_a_run(tmp_path):
    Made("model.conv_width=0", seed=1).save(tmp_path / "a = [model].ckpt")
    load_run(None, str(tmp_path / "a = [model].ckpt"))
    Made("model.conv_width=0").start(tmp_path / "a = [model].ckpt")
    with pytest.raises(UserError, match=r"\(conv_width=0 there, 8 here\)"):
        Made().start(tmp_path / "a = [model].ckpt")
    with pytest.raises(UserError, match=r"\(extra_norm=false there, true here\)"):
        Made("model.conv_width=0", "model.extra_norm=true").start(tmp_path / "a = [model].ckpt")


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        (("tokenizer=octuple",), (), r"on tokenizer 'octuple', this is 'remi'; set tokenizer=oct"),
        (
            ("tokenizer.beat_resolution=12",),
            ("task=generate",),
            r"'remi' \(beat_resolution=12 there, 8 here\)",
        ),
        (
            ("tokenizer.params.use_velocities=false", "tokenizer.tracks=merged"),
            (),
            r"\(params.use_velocities=false there, true here, tracks=merged there, all here\)",
        ),
        (
            ("model=lstm",),
            (),
            r"midigenre.models.LSTM \(model=lstm\), this is midigenre.models.Encoder \(model=tiny",
        ),
        (
            ("model.d_model=64", "model.n_layers=3"),
            ("task=generate",),
            r"\(d_model=64 there, 32 here, intervals=true there, false here, n_layers=3 there, 2",
        ),
        ((), ("model.n_heads=8",), r"\(n_heads=4 there, 8 here\)"),
        (
            (),
            ("task=generate",),
            r"\(intervals=true there, false here\); .* give a run trained with model.intervals=fa",
        ),
        ((), ("model.norm=post",), r"\(norm=pre there, post here\)"),
        ((), ("model.combine=sum",), r"\(combine=concat there, sum here\)"),
        (
            ("model.positions=learned", "model.max_positions=99"),
            ("model.positions=learned",),
            r"\(max_positions=99 there, 2048 here\)",
        ),
        (
            ("model=lstm",),
            ("model=lstm", "task=generate"),
            r"has two and task=generate needs one direction: weights of one do not serve",
        ),
        (
            ("model=lstm", "task=generate"),
            ("model=lstm",),
            r"has one and task=genre needs two directions: weights of one do not serve",
        ),
    ],
)
def test_weights_that_mean_something_else_are_refused(there, here, message, tmp_path):
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    Made(*there).save(path)
    with pytest.raises(UserError, match=message) as error:
        Made(*here).start(tmp_path / "run")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_equal_tokenizer_of_another_name_will_do_and_another_vocabulary_not(tmp_path):
    old, path = Made(), tmp_path / "best.ckpt"
    spec = old.tokens.to_dict()
    old.tokens = TokenSpec.from_dict({**spec, "name": "mine"})
    old.save(path)
    Made().start(path)
    spec["fields"][0]["tokens"][-1] = "Pitch_200"
    old.tokens = TokenSpec.from_dict(spec)
    old.save(path)
    with pytest.raises(UserError, match=r"tokens there, .* here, by another version"):
        Made().start(path)


def test_what_cannot_be_read_is_refused(tmp_path):
    made = Made()
    with pytest.raises(UserError, match=r"init_from=.*nowhere: no such folder"):
        made.start(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"init_from=.* has no checkpoints/best\.ckpt$"):
        made.start(tmp_path)
    made.save(tmp_path / "runs" / "one" / "checkpoints" / "best.ckpt")
    with pytest.raises(UserError, match=r"did you mean .*one\?"):
        made.start(tmp_path / "runs")
    (tmp_path / "text.ckpt").write_text("no weights")
    with pytest.raises(UserError, match=r"text\.ckpt is not a checkpoint of midigenre"):
        made.start(tmp_path / "text.ckpt")
    made.save(tmp_path / "new.ckpt", format=99)
    with pytest.raises(UserError, match=r"new\.ckpt has checkpoint format 99"):
        made.start(tmp_path / "new.ckpt")
