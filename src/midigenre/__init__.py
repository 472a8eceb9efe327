"""midigenre: classify symbolic music by genre and emotion."""

from importlib.metadata import version

__version__ = version("midigenre")
