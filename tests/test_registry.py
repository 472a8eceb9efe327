"""What a file may name, and that nothing of a file is unpickled."""

from __future__ import annotations

import ast
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import midigenre
from midigenre import registry
from midigenre.build import make, make_optim
from midigenre.errors import UserError
from midigenre.run import RunFolder, as_config, literal
from midigenre.spec import TokenSpec
from midigenre.tokenizers.base import Tokenizer, from_spec

SRC = Path(midigenre.__file__).parent


@pytest.fixture(autouse=True)
def nobody_typed() -> None:
    registry.trust({})


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A config tree with a class of one's own, and a run beside it that is no part of it."""
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "mine.yaml").write_text("_target_: my_words.Mine\nname: mine\n")
    (tmp_path / "experiment").mkdir()
    recipe = "# @package _global_\ncallbacks: {mine: {_target_: my_words.Call}}\n"
    (tmp_path / "experiment" / "r.yaml").write_text(recipe)
    run = tmp_path / "runs" / "stranger" / "config.yaml"
    run.parent.mkdir(parents=True)
    run.write_text("corpus: {_target_: os.system}\n")
    (tmp_path / "my_words.py").write_text("class Mine: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    registry.trust({})
    sys.modules.pop("my_words", None)


def test_all_that_the_config_tree_names_can_be_found() -> None:
    named = registry._of_tree(registry.conf_dir())
    assert len(named) > 25
    for group, name in named:
        if "Wandb" not in name:  # an extra
            assert callable(registry.find_class(group, name)), name


def test_the_config_tree_names_nothing_that_imports_or_calls_by_name() -> None:
    for _, name in registry._of_tree(registry.conf_dir()):
        assert name.startswith(("midigenre.", "lightning.", "torch.profiler.")), name


@pytest.mark.parametrize("name", [
    "os.system", "midigenre.files.write_json", "midigenre.cli.main", "lightning.Trainer",
    "midigenre.tokenizers.miditok.MidiTokTokenizer.__init__", "", None, 3, ["os.system"],
    " midigenre.tokenizers.miditok.MidiTokTokenizer", "midigenre.corpora.toy.Toy",
])  # fmt: skip
def test_other_names_are_unknown(name: object) -> None:
    assert not registry.is_known("tokenizer", name)
    with pytest.raises(UserError, match="no tokenizer of midigenre"):
        registry.find_class("tokenizer", name)


def test_nothing_is_imported_before_it_is_known(own: Path) -> None:
    with pytest.raises(UserError):
        registry.find_class("tokenizer", "my_words.Mine")
    with pytest.raises(UserError):
        make({"_target_": "my_words.Mine"}, "tokenizer", object)
    with pytest.raises(UserError):
        from_spec(TokenSpec("mine", (), "none", 1, {"_target_": "my_words.Mine"}))
    assert "my_words" not in sys.modules


def test_a_config_dir_and_the_command_line_make_classes_known(own: Path) -> None:
    registry.trust({"model": {"_target_": "my_words.Mine", "deep": [{"_target_": "a.B"}]}}, [own])
    assert registry.find_class("tokenizer", "my_words.Mine").__name__ == "Mine"
    assert registry.is_known("callbacks", "my_words.Call")  # from the recipe
    assert registry.is_known("model", "a.B")
    assert not registry.is_known("corpus", "my_words.Mine")
    assert not registry.is_known("corpus", "os.system")  # a run that lies there is no config
    registry.trust({})  # the next command
    assert not registry.is_known("tokenizer", "my_words.Mine")


def test_a_class_that_is_no_class_of_the_kind_is_refused(own: Path) -> None:
    registry.trust({}, [own])
    with pytest.raises(UserError, match="makes no Tokenizer"):
        make({"_target_": "my_words.Mine"}, "tokenizer", Tokenizer)
    with pytest.raises(UserError, match="is no Tokenizer"):
        from_spec(TokenSpec("mine", (), "none", 1, {"_target_": "my_words.Mine"}))


@pytest.mark.parametrize("known", [True, False])
def test_what_is_known_goes_with_a_spec_to_other_processes(own: Path, known: bool) -> None:
    registry.trust({}, [own] if known else [])
    packed = pickle.dumps(TokenSpec("mine", (), "none", 1, {"_target_": "my_words.Mine"}))
    registry.trust({})  # as in a new process
    assert pickle.loads(packed).name == "mine"
    assert registry.is_known("tokenizer", "my_words.Mine") == known


@pytest.mark.parametrize("text", [
    "${oc.env:HOME}", "${bad", "a\\${b}", "a\\\\${oc.env:HOME}", "${", "$HOME", "\\", "x\\",
    "'${}'",
])  # fmt: skip
def test_text_of_a_file_stands_for_itself(text: str) -> None:
    data = {"a": text, "b": [{"c": text}]}
    config = as_config(data)
    assert config.a == text
    assert config.b[0].c == text
    assert literal(3) == 3


def test_nothing_is_interpolated_where_objects_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "0.5")
    config = as_config({
        "model": {"lr": 0.1},
        "optim": {"_target_": "midigenre.tasks.optim.AdamWSettings", "lr": "${oc.env:SECRET}",
                  "weight_decay": 0.0, "warmup_steps": 0},
    })  # fmt: skip
    with pytest.raises(UserError) as error:
        make_optim(config)
    assert "0.5" not in str(error.value)


def test_a_config_reads_as_it_was_saved(tmp_path: Path) -> None:
    text = (
        "corpus: {root: '/a/${b', date: 2026-01-01}\ntokenizer: {}\nmodel: {lr: 1e-3}\n"
        "optim: {}\ntask: {}\n"
    )
    (tmp_path / "config.yaml").write_text(text)
    config = RunFolder(tmp_path).config
    assert config["corpus"] == {"root": "/a/${b", "date": "2026-01-01"}
    assert config["model"]["lr"] == 0.001
    assert RunFolder.of(tmp_path).as_config().corpus.root == "/a/${b"


UNSAFE = {"pickle.load", "pickle.loads", "joblib.load", "eval", "exec", "yaml.unsafe_load",
          "instantiate", "get_class", "get_method", "get_object"}  # fmt: skip


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(n.func), n) for n in ast.walk(tree) if isinstance(n, ast.Call)]


def given(call: ast.Call, name: str) -> object:
    values = [k.value.value for k in call.keywords if k.arg == name and hasattr(k.value, "value")]
    return values[0] if values else None


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda p: p.name)
def test_no_file_is_unpickled_and_no_name_is_imported_unasked(path: Path) -> None:
    for name, call in calls(ast.parse(path.read_text(encoding="utf-8"))):
        if name == "torch.load":
            assert given(call, "weights_only") is True, ast.unparse(call)
        if name in ("np.load", "numpy.load"):
            assert given(call, "allow_pickle") is False, ast.unparse(call)
        if name.endswith(".fit") and any(k.arg == "ckpt_path" for k in call.keywords):
            assert given(call, "weights_only") is True, ast.unparse(call)
        assert name not in UNSAFE
        if "import_module" in name:
            assert path.name == "registry.py" or "midigenre.commands." in ast.unparse(call)
        if name == "OmegaConf.load":
            raise AssertionError(f"{path}: midigenre.run reads a run's config")
