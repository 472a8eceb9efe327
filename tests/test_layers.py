"""Imports go down only (CONTRIBUTING.md), and the shape of the source stays what it is."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

import midigenre

SRC = Path(midigenre.__file__).parent
LAYERS = {
    "arrays": 0, "spec": 0, "files": 0, "errors": 0, "storage": 0, "registry": 0,
    "wording": 0,
    "run": 1, "midi": 1, "tokenizers": 1,
    "corpora": 2, "models": 2,
    "data": 3, "generation": 3,
    "evaluation": 4,
    "tasks": 5,
    "build": 6, "checks": 6, "trained": 6,
    "inference": 7,
    "commands": 8, "cli": 8,
    "": 9, "__main__": 9,  # "" is `midigenre` itself: its version and `load`
}  # fmt: skip
# Imports within a layer, from one part to another.
BESIDE = {("tokenizers", "midi"), ("cli", "commands"),
          ("trained", "build"), ("checks", "build"), ("storage", "files"), ("storage", "errors"),
          ("registry", "errors"), ("spec", "registry")}  # fmt: skip


def module_name(path: Path) -> str:
    """``data.shards`` of ``data/shards.py``, ``data`` of ``data/__init__.py``."""
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SRC.rglob("*.py"))}


def part(module: str) -> str:
    return module.split(".")[0]


def packages_above(module: str) -> set[str]:
    """``evaluation`` and ``evaluation.music`` of ``evaluation.music.control``."""
    names = module.split(".")
    return {".".join(names[:i]) for i in range(1, len(names))}


@cache
def imports(module: str, top_level: bool = False) -> frozenset[str]:
    """Modules of midigenre that a module imports, anywhere in it or while it is loaded."""
    path = MODULES[module]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found: set[str] = set()
    for node in _loaded(tree) if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package[: len(package) - node.level + 1]
                base = ".".join(["midigenre", *above, *([base] if base else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {target for name in names if (target := _module(name)) is not None}
    return frozenset(found - {module})


def _loaded(tree: ast.AST) -> list[ast.AST]:
    """Nodes that run when the module is loaded: not those of functions or of TYPE_CHECKING."""
    found: list[ast.AST] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        found += [node, *_loaded(node)]
    return found


def _module(name: str) -> str | None:
    """The module that ``midigenre.data.shards.ShardSet`` lies in; None for other packages."""
    root, _, rest = name.partition(".")
    if root != "midigenre":
        return None
    while rest and rest not in MODULES:
        rest = rest.rpartition(".")[0]
    return rest


def test_imports_are_found() -> None:
    """The tests below can fail."""
    assert {"data.shards", "spec", "tokenizers.base"} <= imports("data.phrases")
    assert "tokenizers.fast" in imports("tokenizers.miditok")
    assert "models.transformer" in imports("models", top_level=True)
    assert "" in imports("cli")
    assert "" not in imports("cli", top_level=True)
    assert len(MODULES) > 40


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    mine = part(module)
    assert mine in LAYERS, f"{module}: give it a layer, here and in CONTRIBUTING.md"
    for other in imports(module):
        down = LAYERS[part(other)] < LAYERS[mine]
        assert down or part(other) in (mine, "") or (mine, part(other)) in BESIDE, (
            f"{module} (layer {LAYERS[mine]}) imports {other} (layer {LAYERS[part(other)]})"
        )


def test_data_and_models_know_only_the_spec() -> None:
    for module in MODULES:
        others = {part(other) for other in imports(module)}
        assert not (part(module) == "data" and "models" in others), module
        if part(module) == "models":
            assert others <= {"models", "spec", "arrays", "errors", "files"}, module


def test_the_lowest_layer_stands_alone() -> None:
    for module, below in (("arrays", ""), ("files", ""), ("errors", ""), ("wording", ""),
                          ("registry", "errors"), ("spec", "registry")):  # fmt: skip
        assert imports(module) <= {below, ""}


def test_no_cycles() -> None:
    """No module waits for itself while it is loaded."""
    graph = {module: set(imports(module, top_level=True)) for module in MODULES}
    for module in MODULES:
        # Loading a module loads the packages above it first; its own are being loaded already.
        for target in list(graph[module]):
            graph[module] |= packages_above(target) - {module} - packages_above(module)
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_no_small_module_serves_one_importer_alone() -> None:
    """A file holds one idea: what only one other needs, and is short, stands there."""
    importers = {module: {m for m in MODULES if module in imports(m)} for module in MODULES}
    small = {
        module for module, path in MODULES.items()
        if path.name != "__init__.py" and len(importers[module]) <= 1
        and len(path.read_text(encoding="utf-8").splitlines()) < 120
    }  # fmt: skip
    # `python -m midigenre`, commands (the dispatcher imports them by name), and a backbone and a
    # task, which are files of their own because configs name them.
    own = {
        "__main__",
        "models.lstm",
        "tasks.pretrain",
        *(m for m in MODULES if m.startswith("commands.")),
    }
    assert small <= own, sorted(small - own)


def test_a_public_name_has_one_meaning() -> None:
    """No two modules define the same function, class or constant."""
    where: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names = [node.name]
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            else:
                continue
            for name in names:
                where.setdefault(name, []).append(module)
    same = {
        "run",  # what a command does
        "log",  # a module's logger
        "FORMAT_VERSION",  # of the files that a corpus makes
    }
    twice = {n: m for n, m in where.items() if len(m) > 1 and n[0] != "_" and n not in same}
    assert not twice


def test_every_package_says_what_it_holds() -> None:
    for folder in {path.parent for path in MODULES.values()}:
        init = folder / "__init__.py"
        assert init.is_file(), f"{folder} has no __init__.py"
        assert ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))), f"{init}: docstring"


def test_every_module_has_a_docstring() -> None:
    for module, path in MODULES.items():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), module


def test_models_need_neither_lightning_nor_hydra() -> None:
    for module, path in MODULES.items():
        if part(module) == "models":
            names = {
                n for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                for n in (
                    [a.name for a in node.names] if isinstance(node, ast.Import)
                    else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                )
            }  # fmt: skip
            assert not {n.split(".")[0] for n in names} & {"lightning", "hydra", "omegaconf"}, (
                module
            )
