"""The command line: usage, quoting of paths, errors of one line."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from midigenre import __version__
from midigenre.cli import COMMANDS, main, overrides_of


def test_alone_it_lists_every_command(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"midigenre {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_groups_and_settings(command, midigenre):
    status, out, _ = midigenre(command, "--help")
    assert status == 0
    assert f"midigenre {command}" in out
    if command == "train":
        for word in (
            "tokenizer: cp, midilike",
            "model: base, deep",
            "trainer: cpu, ddp, fsdp, gpu",
        ):
            assert word in out


def test_cfg_job_prints_the_composed_config(midigenre):
    status, out, _ = midigenre("train", "--cfg", "job", "tokenizer=cp", "model=small")
    assert status == 0
    config = OmegaConf.create(out)
    assert config.tokenizer.cls == "CPWord"
    assert config.model.d_model == 256


def value_of(override):
    """What Hydra and OmegaConf make of an override's value."""
    parsed = OverridesParser.create().parse_override(override)
    assert not parsed.is_sweep_override()
    return OmegaConf.create({"key": parsed.value()}).key


AWKWARD = [
    "a b", "a=b", "it's", '"', "a,b", "[1]", "{x}", "${x}", "\\${x}", "\\\\${x}", "\\", "a\\",
    "\\'", "123", "1.0", "true", "#", "~", "$HOME", "a:b", "*", "a\nb", " lead", "trail ", "é✓",
    "glob(*)", "range(1,3)", "", "+x", "++y", "choice(a)", "\udc80raw-byte",
]  # fmt: skip


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_paths_arrive_as_they_are(text):
    (override,) = overrides_of([f"corpus.root={text}"])
    assert value_of(override) == text


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab \\'\"${}=,[]()#~:*\n1.é/"), max_size=12))
def test_any_path_arrives_as_it_is(text):
    if text == "null":
        return
    (override,) = overrides_of([f"run={text}"])
    assert value_of(override) == text


def test_other_settings_are_left_to_hydra():
    arguments = ["tokenizer=remi,cp", "seed=1", "ckpt=best", "corpus.root=null", "-m"]
    assert overrides_of(arguments) == arguments
    assert overrides_of(["ckpt=/a b/x.ckpt"]) == ["ckpt='/a b/x.ckpt'"]


MISTAKES = {
    "a setting of data": (("train", "corpus=toy", "+data.foo=1"), ("data.foo", "no such setting")),
    "a misspelt command": (["trian"], ["trian", "did you mean train?"]),
    "a misspelt choice": (["train", "tokenizer=rmei"], ["rmei", "did you mean remi?", "octuple"]),
    "a misspelt setting": (
        ["train", "model.d_modle=3"],
        ["d_modle", "did you mean model.d_model?"],
    ),
    "a misspelt group": (["train", "modle=tiny"], ["modle", "did you mean model?"]),
    "a group of none": (["train", "augment=null"], ["augment=null", "none, standard, strong"]),
    "a setting by its last part": (["train", "epochs=3"], ["epochs", "mean trainer.max_epochs"]),
    "another name of a setting": (["train", "lr=1e-3"], ["did you mean model.lr or optim.lr?"]),
    "another word for a setting": (["train", "learning_rate=1"], ["mean model.lr or optim.lr?"]),
    "a setting of other programs": (["train", "batch_size=3"], ["did you mean data.batch_phrases"]),
    "a setting in a wrong group": (["train", "model.lr_decay=1"], ["optim.layer_decay"]),
    "a setting of a group alone": (["train", "n_heads=4"], ["did you mean model.n_heads?"]),
    "a setting of other commands": (["train", "device=cuda"], ["device", "write trainer=gpu"]),
    "a setting of two commands": (
        ["train", "batch=3"],
        ["did you mean data.batch_phrases", "belongs to midigenre generate"],
    ),
    "training settings": (["prepare", "epochs=3"], ["midigenre train has trainer.max_epochs"]),
    "an option": (["train", "--model", "tiny"], ["--model", "write model=tiny"]),
    "an option with a value": (["train", "--tokenizer=cp"], ["write tokenizer=cp"]),
    "an option that is no setting": (["train", "--epochs", "3"], ["write trainer.max_epochs=3"]),
    "a misspelt option": (["predict", "--ckp=best", "--", "x"], ["write ckpt=best"]),
    "a group of another command": (["prepare", "task=genre"], ["task belongs to midigenre train"]),
    "a setting of another command": (["prepare", "trainer.max_epochs=3"], ["midigenre train"]),
    "a setting of generate": (["predict", "run=x", "temperature=1"], ["midigenre generate"]),
    "all classes at once": (
        ["prepare", "labels.map={genre: {a: b}}"],
        ["labels.map", "labels.map.genre.hiphop=rap"],
    ),
    "nothing like it": (["train", "xyzzy=3"], ["xyzzy", "midigenre train --help"]),
    "an added typo": (["train", "+foo=1"], ["foo: no such setting", "--help"]),
    "an added typo of a setting": (["train", "+sede=1"], ["sede: no such", "did you mean seed"]),
    "an added typo twice": (["predict", "++tresh=1", "--", "x"], ["tresh: no such setting"]),
    "labels of a command without": (["compare", "labels.map.genre.a=b"], ["labels.map: no such"]),
    "a number below none": (
        ["train", "trainer.max_epochs=-5"],
        ["max_epochs=-5 trains nothing; give 1 or more"],
    ),
    "a sweep without -m": (
        ["train", "tokenizer=remi,cp"],
        ["tokenizer=remi,cp: -m runs", "tokenizer=[remi,cp]"],
    ),
    "a file as a run": (
        ["generate", f"run={__file__}"],
        [f"is a file; give the run's folder, or ckpt={__file__}"],
    ),
    "an output of predict": (
        ["predict", "format=csv", "out=a.csv", "--", "x"],
        ["out=a.csv", "explain=true", "> a.csv"],
    ),
    "a missing folder": (
        ["train", "corpus=folder", "corpus.root=/nowhere"],
        ["/nowhere", "does not exist", "genre"],
    ),
    "no folder": (["prepare", "corpus=folder"], ["corpus.root=DIR"]),
    "text for a number": (["train", "trainer.max_epochs=abc"], ["max_epochs=abc", "whole number"]),
    "a number for a flag": (["train", "debug=7"], ["debug=7", "true or false"]),
    "no setting at all": (["train", "foo"], ["'foo'", "key=value"]),
    "a path for train": (["train", "--", "x"], ["'x'", "corpus.root"]),
    "heads that do not divide": (["train", "model.n_heads=7"], ["n_heads=7", "d_model=128"]),
    "an unknown schedule": (["train", "optim.schedule=x"], ["schedule=x", "cosine"]),
    "a bad rate": (["train", "optim.lr=-1"], ["optim.lr", "-1"]),
    "an unknown pooling": (["train", "model.pooling=max"], ["max", "attention"]),
    "too long phrases": (["train", "data.phrase_bars=65"], ["phrase_bars", "65", "64"]),
    "no songs": (["train", "corpus.limit=0"], ["corpus.limit", "0"]),
    "an unknown class of MidiTok": (["train", "tokenizer.cls=Remi"], ["Remi", "REMI"]),
    "an unknown device": (["evaluate", "run=x", "device=gpu"], ["device=gpu", "cpu or cuda"]),
    "a home that cannot be": (["train", "home=/dev/null/x"], ["/dev/null/x"]),
    "a vocabulary without bars": (["train", "tokenizer.max_bars=0"], ["max_bars=0"]),
    "no padding token": (["train", "tokenizer.special_tokens=[BOS]"], ["special_tokens", "PAD"]),
    "a task without its label": (["train", "task=emotion"], ["emotion", "genre"]),
    "no run": (["predict", "--", "x.mid"], ["run="]),
    "a stray character": (["train", "a.mid)"], ["'a.mid)'", "key=value"]),
    "an empty run": (["evaluate", "run="], ["run="]),
    "a run of nothing": (["evaluate", "run=123"], ["run=123", "no such folder"]),
    "no file": (["predict", "run=x"], ["FILE_OR_DIR"]),
    "shards of nothing": (["inspect", "path=."], ["spec.json", "midigenre prepare"]),
    "an unknown subset": (["evaluate", "run=x", "subset=foo"], ["foo", "train, val, test"]),
    "compared to nothing": (["compare"], ["compare", "RUN_OR_FOLDER"]),
    "resuming nothing": (["train", "resume=."], ["resume=.", "config.yaml"]),
    "a fraction too many": (["train", "split.fractions=[0.8,0.2,0.2]"], ["split.fractions"]),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_end_in_one_clear_line(what, midigenre, home):
    arguments, words = MISTAKES[what]
    runs = set((home / "runs").rglob("*"))
    status, out, err = midigenre(*arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1, err
    assert err.startswith("midigenre: ")
    assert all(word in err for word in words), err
    assert "there is" not in err or err.count(",") < 20  # no list of all settings
    assert set((home / "runs").rglob("*")) == runs


def test_debug_shows_the_traceback(midigenre):
    status, _, err = midigenre("train", "corpus=folder", "corpus.root=/nowhere", "debug=true")
    assert status == 2
    assert "Traceback" in err
    assert "UserError" in err


def test_a_mistake_leaves_argv_and_the_folder_alone(midigenre, home):
    import sys

    argv, before = list(sys.argv), set(home.iterdir())
    midigenre("prepare", "corpus=folder")
    midigenre("predict", "run=x", "--", "y")
    assert sys.argv == argv
    assert set(home.iterdir()) == before
