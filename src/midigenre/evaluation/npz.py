"""Named arrays in a file: numbers only, so that nothing in it is run when it is read."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from midigenre.files import write_bytes

DAMAGED = (OSError, KeyError, ValueError, TypeError, RuntimeError)
"""What reading a damaged file, or making something of its arrays, may raise."""


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes arrays, compressed; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Reads what :func:`write_arrays` wrote.

    Raises:
        OSError: The file is not there, or cannot be read.
        ValueError: It is damaged, or holds NaN.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
        for key, values in arrays.items():
            if values.dtype.kind == "f" and np.isnan(values).any():
                raise ValueError(f"{key} holds NaN")
        return arrays
    except OSError:
        raise
    # Of zip, zlib, struct, tokenize, ...: what a wrong byte may raise is listed nowhere.
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"damaged ({what})") from error


def below(arrays: Mapping[str, NDArray[Any]], part: str) -> dict[str, NDArray[Any]]:
    """The arrays whose names begin with ``part/``, under the rest of their names."""
    prefix = f"{part}/"
    return {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}
