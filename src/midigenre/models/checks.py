"""The check that every part of a model makes on its settings."""

from __future__ import annotations

from collections.abc import Sequence


def check_choice(setting: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that is not among the choices.

    Raises:
        ValueError: Naming the setting, the value and the choices.
    """
    if value not in choices:
        raise ValueError(f"{setting}={value!r} is unknown; choose from: {', '.join(choices)}")
