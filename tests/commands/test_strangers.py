"""Nothing that a stranger's checkpoint, shards or run names is ever called, and no secret leaks."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from toy_runs import SMALL

from midi import make_score, melody, to_bytes
from midigenre import registry
from midigenre.build import make, plain
from midigenre.errors import UserError
from midigenre.run import RunFolder
from midigenre.spec import TokenSpec
from midigenre.tasks.base import CHECKPOINT_KEY
from midigenre.tokenizers.base import from_spec
from midigenre.trained import check_last, load_run, start_from

SECRET = "the-secret-of-this-machine"


class Touch:
    """What a pickle runs when it is loaded."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch '{self.canary}'",)


def payloads(canary, bomb):
    """Targets that leave ``canary``, which must not appear."""
    touch = {"_target_": "os.system", "command": f"touch '{canary}'"}
    alias = {"_target_": "midigenre.cli.os.system", "command": f"touch '{canary}'"}
    shell = {"args": ["touch", str(canary)]}
    python = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    return {
        "system": touch,
        "an alias": alias,
        "Popen": {"_target_": "subprocess.Popen", **shell},
        "run": {"_target_": "subprocess.run", **shell},
        "eval": {"_target_": "builtins.eval", "_args_": [python]},
        "exec": {"_target_": "builtins.exec", "_args_": [python]},
        "open": {"_target_": "builtins.open", "file": str(canary), "mode": "w"},
        "torch.load": {"_target_": "torch.load", "f": str(bomb), "weights_only": False},
        "joblib.load": {"_target_": "joblib.load", "filename": str(bomb)},
        "numpy.load": {"_target_": "numpy.load", "file": str(bomb), "allow_pickle": True},
        "our own function": {
            "_target_": "midigenre.files.write_json", "path": str(canary), "data": 1},
        "makedirs": {"_target_": "os.makedirs", "name": str(canary)},
        "instantiate": {"_target_": "hydra.utils.instantiate", "config": touch},
        "an import": {"_target_": "hydra.utils.get_class", "path": "bomb_module.Class"},
        "a partial": {**touch, "_partial_": True},
        "a class of another group": {
            "_target_": "lightning.pytorch.loggers.TensorBoardLogger", "save_dir": str(canary)},
        "not recursive": {**touch, "_recursive_": False},
        "no name": {"_target_": ["os.system"], "command": f"touch '{canary}'"},
    }  # fmt: skip


PAYLOADS = tuple(payloads("", ""))
FEW = ("system", "our own function", "an import")
SOME = [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in PAYLOADS]
"""The rest is tried without commands, below."""


@pytest.fixture
def danger(tmp_path, monkeypatch):
    """``danger(name)`` gives a payload; at the end nothing must have run."""
    canary, bomb = tmp_path / "canary", tmp_path / "bomb.pkl"
    bomb.write_bytes(pickle.dumps(Touch(canary)))
    (tmp_path / "bomb_module.py").write_text(f"open({str(canary)!r}, 'w')\nclass Class: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SECRET", SECRET)
    yield payloads(canary, bomb).__getitem__
    assert not canary.exists()


def own_class(group):
    """The first class of a group that the config tree names."""
    return {"_target_": min(n for g, n in registry._of_tree(registry.conf_dir()) if g == group)}


def nested(payload):
    return {"settings": [{"deep": payload}]}


def changed_config(run, change):
    path = run / "config.yaml"
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config))


def changed_checkpoint(path, change):
    content = torch.load(path, weights_only=True)
    change(content[CHECKPOINT_KEY])
    torch.save(content, path)


def put(group):
    """Replaces a group."""
    return lambda payload: lambda config: config.__setitem__(group, payload)


def add(group, name="evil"):
    """Adds to a group."""
    return lambda payload: lambda config: config[group].__setitem__(name, payload)


def put_tokenizer(payload):
    return lambda about: about["tokens"].__setitem__("tokenizer", payload)


CHECKPOINTS = {
    "tokenizer": put_tokenizer,
    "a setting of the tokenizer": lambda payload: lambda about: about["tokens"]["tokenizer"][
        "params"].__setitem__("pitch_range", payload),
    "model": put("model"),
    "a setting of the model": add("model", "dropout"),
    "task": put("task"),
    "a setting of the task": add("task"),
}  # fmt: skip

CONFIGS = {
    "evaluate": {"corpus": put("corpus"), "a setting of the corpus": add("corpus", "n_songs"),
                 "a dictionary of the corpus": lambda p: add("corpus", "n_songs")(nested(p))},
    "train resume": {
        **{group: put(group) for group in ("corpus", "tokenizer", "model", "task", "optim",
                                           "trainer", "augment", "profiler")},
        **{f"one of {group}": add(group) for group in ("callbacks", "logger")},
        "a setting of the trainer": add("trainer", "strategy"),
        "a setting of a callback": lambda p: lambda config: config["callbacks"][
            "checkpoint"].__setitem__("filename", p),
    },
    "train init_model": {"model": put("model"), "tokenizer": put("tokenizer")},
}  # fmt: skip


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    path = tmp_path_factory.mktemp("song") / "x.mid"
    path.write_bytes(to_bytes(make_score(melody(8))))
    return str(path)


@pytest.fixture(scope="module")
def spec(home, toy_run):
    return json.loads((home / toy_run / "spec.json").read_text())


@pytest.fixture
def copy(home, toy_run, tmp_path):
    """A run to be doctored."""
    return shutil.copytree(home / toy_run, tmp_path / "run")


@pytest.fixture
def command(copy, song, toy_generator, home):
    """The arguments of each command that reads a run or a checkpoint."""
    best = copy / "checkpoints" / "best.ckpt"
    return {
        "predict": ["predict", f"run={copy}", "guard=false", "--", song],
        "predict ckpt": ["predict", f"ckpt={best}", "guard=false", "--", song],
        "predict explain": ["predict", f"run={copy}", "explain=true", "--", song],
        "evaluate": ["evaluate", f"run={copy}"],
        "evaluate corpus": ["evaluate", f"ckpt={best}", "corpus=toy", "corpus.n_songs=8"],
        "generate": ["generate", f"run={copy}", "n=1"],
        "judge": ["judge", f"run={home / toy_generator}", f"judge={copy}", "n=1"],
        "judge run": ["judge", f"run={copy}", f"judge={copy}", "n=1"],
        "train resume": ["train", f"resume={copy}", "trainer.max_epochs=7"],
        "train init_from": ["train", *SMALL, f"init_from={best}", "trainer.max_steps=1"],
        "train init_model": ["train", *SMALL, f"init_from={copy}", "init_model=true"],
        "compare": ["compare", "--", str(copy)],
    }


def refused(answer, *words):
    """One line on stderr, status 2, nothing on stdout."""
    status, out, err = answer
    assert status == 2, err
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("midigenre: "), err
    for word in words:
        assert word in last, err
    assert SECRET not in out + err


ALL_PLACES = [(name, place) for name in CONFIGS for place in CONFIGS[name]]
"""Where a config can name something, for each command that builds something of it."""

READ_CHECKPOINTS = ("predict", "predict ckpt", "predict explain", "evaluate", "evaluate corpus",
                    "generate", "judge", "judge run", "train init_from")  # fmt: skip


@pytest.mark.parametrize("name", [n for n in READ_CHECKPOINTS if n != "generate"])
def test_a_checkpoint_names_no_tokenizer(name, copy, command, midigenre, danger):
    changed_checkpoint(copy / "checkpoints" / "best.ckpt", put_tokenizer(danger("system")))
    refused(midigenre(*command[name]), "tokenizer", "os.system", "best.ckpt")


@pytest.mark.parametrize("place", CHECKPOINTS)
def test_no_place_of_a_checkpoint(place, copy, command, midigenre, danger):
    payload = danger("system")
    changed_checkpoint(copy / "checkpoints" / "best.ckpt", CHECKPOINTS[place](payload))
    for name in ("predict ckpt", "generate"):
        refused(midigenre(*command[name]), "os.system", "best.ckpt")


@pytest.mark.parametrize(("name", "place"), ALL_PLACES)
def test_a_config_names_no_code(name, place, copy, command, midigenre, danger):
    changed_config(copy, CONFIGS[name][place](danger("system")))
    refused(midigenre(*command[name]), "os.system", "config.yaml")


@pytest.mark.parametrize("payload", SOME)
def test_no_payload_runs_by_any_way(payload, copy, command, midigenre, danger):
    what = danger(payload)
    changed_config(copy, put("corpus")(what))
    refused(midigenre(*command["evaluate"]), "corpus")
    changed_checkpoint(copy / "checkpoints" / "best.ckpt", put_tokenizer(what))
    refused(midigenre(*command["predict ckpt"]), "tokenizer")


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_payload_runs_where_objects_are_made(payload, danger):
    what = danger(payload)
    for group in ("corpus", "tokenizer", "model", "optim", "augment", "callbacks", "logger"):
        for node in (
            what,
            own_class(group) | {"deep": nested(what)},
            own_class(group) | {"a": what},
        ):
            if group == "logger" and payload == "a class of another group":
                continue  # there it is a class of the group
            with pytest.raises(UserError, match="of midigenre"):
                make(node, group, object)
    for settings in (what, own_class("tokenizer") | {"name": "x", "cls": "REMI", "params": what}):
        with pytest.raises(UserError):
            from_spec(TokenSpec("x", (), "none", 1, settings))


@pytest.mark.parametrize("payload", SOME)
def test_shards_name_no_tokenizer(payload, spec, home, midigenre, danger, tmp_path):
    shards = shutil.copytree(home / spec["shards"], tmp_path / "toy-remi-0123")
    path = shards / "spec.json"
    content = json.loads(path.read_text())
    content["tokens"]["tokenizer"] = danger(payload)
    path.write_text(json.dumps(content))
    for arguments in (["inspect", f"path={shards}"], ["train", *SMALL, f"shards={shards}"]):
        status, _, err = midigenre(*arguments)
        assert status == 2, err
        assert "Traceback" not in err


@pytest.mark.parametrize("name", ["compare", "evaluate", "predict", "train resume"])
def test_no_environment_in_a_file(name, copy, command, midigenre, danger):
    """``${oc.env:SECRET}`` is text."""

    def change(config):
        for group in ("corpus", "tokenizer", "model", "task", "split", "callbacks", "data"):
            config[group]["told"] = "${oc.env:SECRET}"
        config["name"] = "${oc.env:SECRET}"
        config["optim"]["weight_decay"] = "${oc.env:SECRET}"

    changed_config(copy, change)
    _, out, err = midigenre(*command[name])
    assert SECRET not in out + err
    assert "Traceback" not in err
    for path in copy.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


def test_no_environment_in_a_checkpoint(copy, command, midigenre, danger):
    path = copy / "checkpoints" / "best.ckpt"
    changed_checkpoint(path, lambda about: about["model"].update(positions="${oc.env:SECRET}"))
    refused(midigenre(*command["predict ckpt"]), "${oc.env:SECRET}")


@pytest.mark.parametrize("key", ["filename", "dirpath"])
def test_a_resumed_run_writes_below_its_folder(key, copy, command, midigenre):
    def change(config):
        config["callbacks"]["checkpoint"][key] = "../../../elsewhere"

    changed_config(copy, change)
    refused(midigenre(*command["train resume"]), key, "elsewhere")


@pytest.mark.parametrize("filename", [
    "{epoch].backward.__func__.__globals__[warnings].sys.modules[os].environ[SECRET}",
    "b{epoch:09999999999}", "{epoch.real}", "}{", "{epoch!r}",
])  # fmt: skip
def test_a_checkpoint_is_not_named_by_what_a_format_reaches(filename, copy):
    changed_config(copy, lambda c: c["callbacks"]["checkpoint"].update(filename=filename))
    with pytest.raises(UserError, match="filename"):
        RunFolder(copy).check_for_training()
    plain_name = "best-{epoch:02d}-{val_loss:.2f}-{step}"
    changed_config(copy, lambda c: c["callbacks"]["checkpoint"].update(filename=plain_name))
    RunFolder(copy).check_for_training()


def test_a_resumed_run_asks_no_scheduler(copy):
    """Dask unpickles whatever its scheduler answers."""
    changed_config(copy, lambda config: config["prepare"].update(
        backend="dask", scheduler="tcp://stranger.example:8786"))  # fmt: skip
    prepare = RunFolder(copy).as_config().prepare
    assert (prepare.backend, prepare.scheduler) == ("loky", None)


@pytest.mark.parametrize("entry", ["train.log", "checkpoints/last.ckpt", "csv"])
def test_a_resumed_run_writes_through_no_link(entry, copy, command, midigenre, tmp_path):
    victim, place = tmp_path / "victim", copy / entry
    victim.write_bytes(place.read_bytes() if place.is_file() else b"mine")
    before = victim.read_bytes()
    place.unlink(missing_ok=True)
    place.symlink_to(victim)
    refused(midigenre(*command["train resume"]), place.name, "out of the run")
    assert victim.read_bytes() == before


def test_the_link_of_weights_and_biases_to_its_log_is_none_of_ours(copy, tmp_path):
    log = copy / "wandb" / "run-1" / "logs" / "debug-core.log"
    log.parent.mkdir(parents=True)
    log.symlink_to(tmp_path / "core-debug.log")
    RunFolder(copy).check_entries()
    log.unlink()
    os.mkfifo(log)
    with pytest.raises(UserError, match="regular file"):
        RunFolder(copy).check_entries()


def test_a_resumed_run_waits_for_no_pipe(copy, command, midigenre):
    (copy / "train.log").unlink(missing_ok=True)
    os.mkfifo(copy / "train.log")
    refused(midigenre(*command["train resume"]), "train.log", "regular file")
    (copy / "train.log").unlink()
    (copy / "train.log").symlink_to("train.log")
    refused(midigenre(*command["train resume"]), "train.log", "regular file")


def test_a_run_that_cannot_be_written_is_not_resumed(copy, command, midigenre, monkeypatch):
    ours = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: (
        ours(path, mode) and not (mode == os.W_OK and Path(path) == copy)))  # fmt: skip
    refused(midigenre(*command["train resume"]), "not writable", "cp -r")


def test_a_resumed_run_logs_below_its_folder(copy, command, midigenre):
    changed_config(copy, lambda config: config["logger"]["tensorboard"].update(name="../../x"))
    refused(midigenre(*command["train resume"]), "name", "../../x")


def test_a_resumed_run_does_not_say_where_its_log_is_sent(copy, command, midigenre):
    evil = {"_target_": "lightning.pytorch.loggers.WandbLogger",
            "settings": {"base_url": "https://stranger.example"}}  # fmt: skip
    changed_config(copy, add("logger", "wandb")(evil))
    refused(midigenre(*command["train resume"]), "settings")


def test_a_pickled_config_is_not_read(midigenre, danger, tmp_path):
    danger("system")
    status, _, err = midigenre("train", f"--experimental-rerun={tmp_path / 'bomb.pkl'}")
    assert status == 2
    assert "resume=" in err


def test_a_name_that_is_none_is_one_line(copy):
    changed_config(copy, lambda config: config["task"].update(name={0: 1}))
    with pytest.raises(UserError, match=r"config\.yaml: task\.name="):
        _ = RunFolder(copy).config


CUTS = {"empty": b"", "cut": None, "a list": b"- 1\n", "a word": b"word", "no YAML": b"task: [",
        "binary": bytes(range(256)), "aliases": b"a: &a {b: 1}\nc: *a\n"}  # fmt: skip


@pytest.mark.parametrize("what", CUTS)
def test_a_damaged_config_is_one_line(what, copy):
    path = copy / "config.yaml"
    path.write_bytes(path.read_bytes()[:300] if CUTS[what] is None else CUTS[what])
    with pytest.raises(UserError, match=r"config\.yaml") as error:
        RunFolder(copy).as_config()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("what", ["empty", "cut"])
def test_commands_refuse_a_damaged_config(what, copy, command, midigenre):
    path = copy / "config.yaml"
    path.write_bytes(path.read_bytes()[:300] if CUTS[what] is None else CUTS[what])
    for name in ("predict", "evaluate", "judge", "train resume", "train init_model"):
        refused(midigenre(*command[name]), "config.yaml")
    _, _, err = midigenre(*command["compare"])
    assert "config.yaml" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"3"])
def test_a_damaged_spec_is_one_line(content, copy):
    (copy / "spec.json").write_bytes(content)
    with pytest.raises(UserError, match=r"spec\.json"):
        _ = RunFolder(copy).shards


def test_commands_refuse_a_damaged_spec(copy, command, midigenre):
    (copy / "spec.json").write_bytes(b"")
    for name in ("evaluate", "train resume"):
        refused(midigenre(*command[name]), "spec.json")


def spoilt(path):
    """Damages of a checkpoint, by name."""
    whole = torch.load(path, weights_only=True)

    def with_about(**about):
        return whole | {CHECKPOINT_KEY: whole[CHECKPOINT_KEY] | about}

    some = dict(whole["state_dict"])
    key = next(k for k, v in some.items() if v.ndim == 2)
    return {
        "empty": b"", "cut": path.read_bytes()[:5000], "text": b"no checkpoint",
        "a number": 1, "a list": [1, 2], "nothing in it": {},
        "about is a list": whole | {CHECKPOINT_KEY: [1]},
        "about is empty": whole | {CHECKPOINT_KEY: {}},
        "no model": whole | {CHECKPOINT_KEY: {
            k: v for k, v in whole[CHECKPOINT_KEY].items() if k != "model"}},
        "a model of no settings": with_about(model={}),
        "a model of text": with_about(model="tiny"),
        "other sizes": whole | {"state_dict": some | {key: torch.zeros(3, 3)}},
        "no weights": whole | {"state_dict": {}},
        "weights of text": whole | {"state_dict": dict.fromkeys(some, "x")},
        "no fields": with_about(tokens=whole[CHECKPOINT_KEY]["tokens"] | {"fields": 3}),
        "labels of numbers": with_about(labels={"genre": 3}),
        "data of text": with_about(data="x"),
        "stray data": with_about(data=whole[CHECKPOINT_KEY]["data"] | {"stray": 1}),
        "data of lists": with_about(data=whole[CHECKPOINT_KEY]["data"] | {"max_tokens": []}),
        "another format": with_about(format=99),
    }  # fmt: skip


DAMAGES = ("empty", "cut", "text", "a number", "a list", "nothing in it", "about is a list",
           "about is empty", "no model", "a model of no settings", "a model of text", "other sizes",
           "no weights", "weights of text", "no fields", "labels of numbers", "data of text",
           "stray data", "data of lists", "another format")  # fmt: skip


def spoil(path, damage):
    content = spoilt(path)[damage]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_one_line(damage, copy, home, toy_run):
    """Wherever it is opened: to predict, to go on, to start from."""
    path, run = copy / "checkpoints" / "last.ckpt", RunFolder(copy)
    spoil(path, damage)
    cfg = run.as_config()
    tokens = TokenSpec.from_dict(run.spec["tokens"])

    def start():
        model = load_run(str(home / toy_run)).model
        start_from(str(path), plain(cfg.model), plain(cfg.task), tokens).load_into(model)

    opened = {
        "predict": lambda: load_run(None, str(path)),
        "resume": lambda: check_last(path, cfg, run),
        "init_from": start,
    }
    if damage in ("other sizes", "no weights"):
        del opened["resume"]  # it is noticed when there is a model
    if damage == "labels of numbers":
        del opened["init_from"]  # which takes none over
    for way in opened.values():
        with pytest.raises(UserError, match=r"last\.ckpt") as error:
            way()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["empty", "about is a list", "other sizes"])
def test_commands_refuse_a_damaged_checkpoint(damage, copy, command, midigenre):
    for name, file in (("predict ckpt", "best"), ("train resume", "last")):
        spoil(copy / "checkpoints" / f"{file}.ckpt", damage)
        refused(midigenre(*command[name]), f"{file}.ckpt")


def test_resume_refuses_the_checkpoint_of_another_run(
    copy, command, midigenre, home, toy_generator
):
    last = copy / "checkpoints" / "last.ckpt"
    shutil.copy(home / toy_generator / "checkpoints" / "last.ckpt", last)
    refused(midigenre(*command["train resume"]), "last.ckpt", "another run")


@pytest.mark.parametrize("change", [
    lambda content: content["lr_schedulers"][0].update(base_lrs=-1),
    lambda content: content["optimizer_states"][0]["state"].update({1: [1]}),
    lambda content: content["loops"]["fit_loop"]["epoch_progress"]["current"].update(processed={}),
    lambda content: content.update(PhraseDataModule=10**30),
], ids=["learning rate", "optimizer", "loops", "data"])  # fmt: skip
def test_resume_refuses_a_damaged_state_of_the_training(change, copy, command, midigenre):
    last = copy / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    change(content)
    torch.save(content, last)
    refused(midigenre(*command["train resume"]), "last.ckpt", "cannot be resumed", "delete it")


def test_resume_refuses_a_checkpoint_of_weights_alone(copy, command, midigenre):
    last = copy / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    del content["optimizer_states"]
    torch.save(content, last)
    refused(midigenre(*command["train resume"]), "last.ckpt", "optimizer_states")


@pytest.mark.parametrize("share", [0.5, 0.9, 0.98])
def test_a_cut_config_is_noticed_wherever_it_is_cut(share, copy, command, midigenre):
    path = copy / "config.yaml"
    text = path.read_bytes()
    end = text.index(b"\ntask:") + 20 if share == 0.98 else int(share * len(text))
    path.write_bytes(text[:end])
    refused(midigenre(*command["train resume"]), "config.yaml")


def test_a_tokenizer_of_ones_own_is_known_by_its_config_dir(midigenre, tmp_path, monkeypatch, home):
    """In the processes that encode, too; and elsewhere only by the same ``--config-dir``."""
    conf = tmp_path / "conf" / "tokenizer"
    conf.mkdir(parents=True)
    (conf / "mine.yaml").write_text(
        "defaults: [remi, _self_]\n_target_: my_tokens.Mine\nname: mine\n"
    )
    (tmp_path / "my_tokens.py").write_text(
        "from midigenre.tokenizers.miditok import MidiTokTokenizer\n\n"
        "class Mine(MidiTokTokenizer):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    given = f"--config-dir={conf.parent}"
    status, out, err = midigenre(
        "prepare", given, "corpus=toy", "corpus.n_songs=8", "tokenizer=mine", "n_workers=2"
    )
    assert status == 0, err
    shards = out.strip()
    refused(midigenre("inspect", f"path={shards}"), "my_tokens.Mine", "--config-dir")
    status, out, err = midigenre("inspect", given, f"path={shards}")
    assert status == 0, err
    assert out


def test_a_checkpoint_has_no_other_folder_deleted(copy, command, midigenre, tmp_path):
    """Lightning removes the checkpoint before the new best one, by the name in the file."""
    precious = tmp_path / "precious"
    precious.mkdir()
    last = copy / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    for state in content["callbacks"].values():
        if "best_k_models" in state:
            state["dirpath"] = str(last.parent)
            evil = f"{last.parent}/../../precious"
            state |= {"best_k_models": {evil: torch.tensor(-1.0)}, "kth_best_model_path": evil,
                      "kth_value": torch.tensor(-1.0)}  # fmt: skip
    torch.save(content, last)
    answer = midigenre(*command["train resume"])
    assert precious.is_dir()
    refused(answer, "last.ckpt", "precious")


@pytest.mark.parametrize("name", ["{}/deeper/best.ckpt", "{}/../best.ckpt", "s3://bucket/best.ckpt",
                                  "../best.ckpt"])  # fmt: skip
def test_a_checkpoint_names_only_its_own(name, copy):
    run, last = RunFolder(copy), copy / "checkpoints" / "last.ckpt"
    check_last(last, run.as_config(), run)  # a run that was moved here: its names lie elsewhere
    content = torch.load(last, weights_only=True)
    for state in content["callbacks"].values():
        if "best_model_path" in state:
            state["best_model_path"] = name.format(last.parent)
    torch.save(content, last)
    with pytest.raises(UserError, match="as a checkpoint of its own"):
        check_last(last, run.as_config(), run)
