"""Where the trainings of these tests find their songs."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of their corpora and shards."""
    return tmp_path_factory.mktemp("home")
