"""``midigenre judge``: the report, its page, and what it refuses."""

import json
import re
import shutil

import numpy as np
import pytest
from symusic import Score
from toy_runs import SMALL, working_in

from midigenre.cli import main
from midigenre.corpora.toy import Toy
from midigenre.data.sandbox import read_song
from midigenre.tasks.predict import classify_songs
from midigenre.tokenizers.base import from_spec
from midigenre.trained import load_run


@pytest.fixture(scope="session")
def toy_judge(home):
    """A classifier of the other half of the toy songs, with other tokens."""
    with working_in(home):
        status = main(["train", *SMALL, "tokenizer=octuple", "task=genre_emotion", "fold=1/2",
                       "name=toy-judge", "optim.lr=0.003", "trainer.max_epochs=4"])  # fmt: skip
        assert status == 0
        (run,) = (home / "runs" / "toy-judge").iterdir()
    return run.relative_to(home)


@pytest.fixture(scope="session")
def half_generator(home):
    """A generator of the first half of the toy songs, conditioned on genre and emotion."""
    with working_in(home):
        status = main(["train", *SMALL, "tokenizer=remi", "task=generate", "fold=2/2",
                       "name=half-generator", "task.conditions=[genre,emotion]",
                       "trainer.max_epochs=1", "data.phrase_bars=4"])  # fmt: skip
        assert status == 0
        (run,) = (home / "runs" / "half-generator").iterdir()
    return run.relative_to(home)


def arguments(generator, judge, *more):
    return ("judge", f"run={generator}", f"judge={judge}", "n=3", "bars=2", *more)


def test_a_judgement(midigenre, half_generator, toy_judge, home):
    status, out, err = midigenre(*arguments(half_generator, toy_judge))
    assert status == 0, err
    assert "of 12 pieces: more than " in err
    assert "no note in the last bar " in err
    path = home / out.strip()
    assert path.parent.parent == home / half_generator / "judgement"
    report = json.loads(path.read_text())
    assert report["independence"]["independent"] is True
    assert report["independence"]["shared_songs"] == 0
    assert report["n_pieces"] == 12
    for label, n_classes in (("genre", 4), ("emotion", 4)):
        found = report["control"][label]
        assert found["chance"] == 1 / n_classes
        assert found["generated"]["n"] == found["shuffled"]["n"] == 12
        assert np.sum(found["generated"]["confusion"]) == 12
    # 12 pieces are enough for distributions, and far too few for a covariance.
    assert "overlap" in report["distance"]["notes_per_bar"]
    assert "needs 50 generated samples" in report["frechet"]["reason"]
    assert report["novelty"]["settings"]["songs"] == report["independence"]["generator_songs"]
    assert report["novelty"]["generated"]["n"] + report["silent"] == 12
    assert report["compared"]["pieces"] == 12
    assert report["structure"]["real"]["n"] == report["compared"]["excerpts"] > 0
    assert report["cut_short"] == 0
    assert 0 <= report["end_early"]["generated"] <= 12
    page = (path.parent / "judgement.html").read_text()
    assert len(re.findall("<audio", page)) == 8  # a generated and a real one of each genre
    assert 'src="http' not in page  # one file, without anything from elsewhere
    assert "Chance is 25%" in page

    # The same command finds its pieces again, and draws none.
    pieces = sorted((path.parent / "pieces").rglob("*.mid"))
    assert len(pieces) == 24
    times = [p.stat().st_mtime_ns for p in pieces]
    pieces[5].unlink()
    status, again, err = midigenre(*arguments(half_generator, toy_judge))
    assert status == 0, err
    assert again == out
    assert json.loads(path.read_text()) == report
    touched = sum(p.stat().st_mtime_ns != t for p, t in zip(pieces, times, strict=True))
    assert 1 <= touched <= 12  # at most the batch of the one that was lost


def test_the_real_excerpts_are_held_out_and_as_long_as_the_pieces(
    midigenre, half_generator, toy_judge, home
):
    status, _, err = midigenre(
        *arguments(half_generator, toy_judge, "audio=null", "shuffled=false", "out=here (1)",
                   "+over.genre=[waltz,rock]")
    )  # fmt: skip
    assert status == 0, err
    folder = home / "here (1)"
    report = json.loads((folder / "judgement.json").read_text())
    assert report["control"]["genre"]["shuffled"] is None
    assert report["control_over"]["genre"]["classes"] == ["waltz", "rock"]
    assert report["control_over"]["genre"]["generated"]["n"] == 6
    assert not (folder / "pieces" / "shuffled").exists()
    assert "<audio" not in (folder / "judgement.html").read_text()
    real = sorted((folder / "examples").glob("real-*.mid"))
    assert len(real) == 4
    for path in real:
        notes = Score(path).to("quarter")
        assert max(n.start for track in notes.tracks for n in track.notes) < 2 * 4
    # Pieces that were drawn otherwise, or for other classes, are not taken for these.
    for change in ("seed=1", "n=2", "quantize=int8"):
        status, _, err = midigenre(
            *arguments(half_generator, toy_judge, "shuffled=false", "out=here (1)", change)
        )
        assert status == 2
        assert "holds pieces of other settings" in err


def test_a_judge_that_is_not_independent_is_reported(midigenre, half_generator, toy_run, home):
    status, out, err = midigenre(
        *arguments(half_generator, toy_run, "shuffled=false", "audio=null", "n=1")
    )
    assert status == 0, err
    report = json.loads((home / out.strip()).read_text())
    notes = report["independence"]["notes"]
    assert not report["independence"]["independent"]
    songs = report["independence"]["generator_songs"]
    assert f"trained on {songs:,} of the generator's {songs:,} training songs" in notes[0]
    assert "both read remi tokens" in notes[1]
    assert "fold=1/2" in err


def test_what_does_not_fit_together_is_refused(midigenre, half_generator, toy_judge):
    def refused(*call):
        status, _, err = midigenre("judge", *call)
        assert status == 2
        assert "Traceback" not in err
        return err

    assert "judge= is missing" in refused(f"run={half_generator}")
    error = refused(f"run={toy_judge}", f"judge={toy_judge}")
    assert "is a classifier" in error
    assert str(half_generator) in error  # what could be given instead
    assert "is a generator" in refused(f"run={half_generator}", f"judge={half_generator}")
    both = (f"run={half_generator}", f"judge={toy_judge}")
    assert "n=0" in refused(*both, "n=0")
    assert "components=0" in refused(*both, "components=0")
    assert "polka is unknown, there is" in refused(*both, "+over.genre=[polka]")
    assert "over.mood=x: this judgement is about genre" in refused(*both, "+over.mood=[x]")
    assert "bars=null" in refused(*both, "bars=null")
    assert "top_p=2" in refused(*both, "top_p=2")


def test_a_corpus_that_has_changed_since_is_refused(
    midigenre, half_generator, toy_judge, home, tmp_path
):
    """Another split would put training songs among the real music that is held out."""
    run = tmp_path / "run"
    shutil.copytree(home / half_generator, run)
    spec = json.loads((run / "spec.json").read_text())
    (run / "spec.json").write_text(json.dumps(spec | {"shards": "shards/toy-remi-00000000"}))
    status, _, err = midigenre(*arguments(run, toy_judge))
    assert status == 2
    assert "has changed since it was trained" in err
    assert "toy-remi-00000000" in err


def test_scores_of_songs_are_predictions(home, toy_judge, midigenre):
    """A song given as notes has the answers of the file that holds them."""
    with working_in(home):
        judge = load_run(str(toy_judge))
    tokenizer = from_spec(judge.tokens)
    files = [ref.path for ref in Toy(n_songs=48).songs(home / "corpora").songs[:5]]
    songs = [read_song(path.read_bytes(), tokenizer)[0] for path in files]
    scores = classify_songs(judge.classifier, [songs[0], None, *songs[1:]], tokenizer, judge.data)
    assert scores.known_S.tolist() == [True, False, *[True] * 4]
    assert scores.classes("genre")[1] == -1
    status, out, _ = midigenre(
        "predict", f"run={toy_judge}", "calibrate=false", "--", *map(str, files)
    )
    assert status == 0
    names = judge.labels.classes["genre"]
    for row, line in zip([0, 2, 3, 4, 5], out.splitlines(), strict=True):
        answer = json.loads(line)
        assert names[scores.classes("genre")[row]] == answer["genre"]
        share = np.exp(scores.log_probs["genre"][row].max())
        assert share == pytest.approx(answer["probabilities"]["genre"][answer["genre"]], abs=1e-3)
