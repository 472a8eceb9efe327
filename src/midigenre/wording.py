"""Words for people: what more than one message needs."""

from __future__ import annotations


def plural(n: int, one: str, many: str = "") -> str:
    """``1 song``, ``2,000 songs``.

    Args:
        n: The number.
        one: The word for one.
        many: The word for any other number; by default with an ``s``.
    """
    return f"{n:,} {one if n == 1 else many or one + 's'}"
