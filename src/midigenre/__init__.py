"""midigenre: classify symbolic music by genre and emotion, and generate it.

:func:`load` opens a trained model.
"""

from __future__ import annotations

import os
import warnings
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from midigenre.inference.classifier import Classifier
    from midigenre.inference.generator import Generator

__version__ = version("midigenre")


def load(
    path: str | os.PathLike[str], ckpt: str = "best", device: str = "cpu"
) -> Classifier | Generator:
    """Opens a trained model.

    Args:
        path: A run's folder, or a checkpoint, which gives a classifier's own probabilities: its
            calibration lies in the run's folder.
        ckpt: The checkpoint of a run's folder: ``best``, ``last`` or a path.
        device: ``cpu`` or ``cuda``.

    Returns:
        A classifier, which labels files (:meth:`.Classifier.predict`) and gives their vectors
        (:meth:`.Classifier.embed`), or a generator (:meth:`.Generator.generate`).

    Raises:
        UserError: There is no such run, or it trained neither.

    Example:
        >>> model = midigenre.load("runs/classifier")
        >>> model.predict("song.mid")["path"]
        'song.mid'
    """
    # PyTorch takes seconds to import, and `import midigenre` alone does without it.
    import weakref
    from contextlib import ExitStack

    from midigenre.data.sandbox import FileReader

    with ExitStack() as on_error:
        reader = on_error.enter_context(FileReader())  # its process gets ready meanwhile
        from midigenre.inference.classifier import Classifier
        from midigenre.inference.generator import Generator
        from midigenre.trained import load_run

        is_file = os.path.isfile(path)
        run, name = (None, os.fspath(path)) if is_file else (os.fspath(path), ckpt)
        trained = load_run(run, name, ("classifier", "generator"))
        if trained.kind == "generator":
            return Generator(trained, device)
        model = Classifier(trained, reader, device=device)
        on_error.pop_all()
    if model.warning is not None:
        warnings.warn(model.warning, stacklevel=2)
    weakref.finalize(model, reader.close)
    return model
