"""Numbers and their words."""

import ast
import re
from pathlib import Path

import pytest

import midigenre
from midigenre.wording import plural


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (plural(1, "song"), "1 song"),
        (plural(0, "song"), "0 songs"),
        (plural(2000, "class", "classes"), "2,000 classes"),
    ],
)
def test_plural(found, expected):
    assert found == expected


def test_no_message_leaves_the_plural_to_the_reader():
    """Neither ``song(s)`` nor ``'s' * (n != 1)``: :func:`plural` says it."""
    for path in Path(midigenre.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.search(r"[a-z]\(s\)", node.value), (path, node.value)
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
                assert getattr(node.left, "value", None) != "s", (path, node.lineno)
