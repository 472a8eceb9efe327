"""A trained run that the command tests share."""

from unittest import mock

import numpy as np
import pytest
import spies
from torch.utils.tensorboard import SummaryWriter
from toy_runs import SMALL, working_in

from midigenre import registry
from midigenre.cli import main

ADD_FIGURE = SummaryWriter.add_figure


@pytest.fixture(autouse=True)
def known_spies(monkeypatch):
    """A resumed run may name the callbacks of these tests, as if they were typed again."""
    trust = registry.trust

    def trust_spies(*given):
        trust(*given)
        for name in vars(spies):
            registry.trust_class("callbacks", f"spies.{name}")

    monkeypatch.setattr(registry, "trust", trust_spies)


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """Working folder of the commands; runs/, shards/ and corpora/ grow in it."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def midigenre(home, capfd, monkeypatch):
    """``midigenre(*arguments) -> (status, stdout, stderr)`` in the working folder."""
    monkeypatch.chdir(home)
    monkeypatch.delenv("MIDIGENRE_HOME", raising=False)

    def call(*arguments):
        capfd.readouterr()
        status = main(list(arguments))
        out, err = capfd.readouterr()
        return status, out, err

    return call


@pytest.fixture(scope="session", autouse=True)
def blank_figures():
    """TensorBoard's figures are blank but for ``toy_run``'s: drawing is a third of a short run."""

    def add_blank(self, tag, figure, global_step=None, *rest):
        self.add_image(tag, np.zeros((3, 2, 2), np.uint8), global_step)

    with mock.patch.object(SummaryWriter, "add_figure", add_blank):
        yield


@pytest.fixture(scope="session")
def toy_run(home):
    """A small model trained on genre and emotion of the toy corpus, good enough to be right."""
    with working_in(home), mock.patch.object(SummaryWriter, "add_figure", ADD_FIGURE):
        # Without intervals, so that a generator can start from it.
        status = main(["train", *SMALL, "task=genre_emotion", "name=shared", "optim.lr=0.006",
                       "model.intervals=false", "trainer.max_epochs=6",
                       "trainer.log_every_n_steps=1"])  # fmt: skip
        assert status == 0
        (run,) = (home / "runs" / "shared").iterdir()
    return run.relative_to(home)


@pytest.fixture(scope="session")
def toy_generator(home):
    """A small generator conditioned on genre and emotion of the toy corpus; barely trained."""
    with working_in(home):
        status = main(["train", *SMALL, "tokenizer=remi", "task=generate", "name=toy-generator",
                       "task.conditions=[genre,emotion]", "trainer.max_epochs=1",
                       "data.phrase_bars=4"])  # fmt: skip
        assert status == 0
        (run,) = (home / "runs" / "toy-generator").iterdir()
    return run.relative_to(home)
