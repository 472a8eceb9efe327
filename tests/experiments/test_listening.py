"""Study 10: the page of a listening test, in a browser too, and what becomes of its answers."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from midigenre.corpora.toy import GENRES, toy_song
from midigenre.errors import UserError

STUDY = Path(__file__).resolve().parents[2] / "experiments" / "10_listening"


def _module(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(STUDY))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return __import__(name)


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Any:
    return _module("build", monkeypatch)


@pytest.fixture
def fold(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("krippendorff")
    return _module("fold", monkeypatch)


@pytest.fixture
def page(build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page of two models with two pieces each and two real ones; ``key.json`` beside it."""
    genre = next(iter(GENRES))
    for model in ("good", "bad"):
        folder = tmp_path / model
        folder.mkdir()
        for i in range(2):
            song = toy_song(np.random.default_rng([len(model), i]), genre, "happy")
            (folder / f"{i}.mid").write_bytes(song.dumps_midi())
        about = {
            "conditions": {"genre": genre, "emotion": "happy"},
            "pieces": [{"midi": f"{i}.mid"} for i in range(2)],
        }
        (folder / "samples.json").write_text(json.dumps(about))
    rows = ["path,genre"]
    for i, name in enumerate(list(GENRES)[:2]):
        song = toy_song(np.random.default_rng([9, i]), name, "sad")
        (tmp_path / f"real {i}.mid").write_bytes(song.dumps_midi())
        rows.append(f"real {i}.mid,{name}")
    (tmp_path / "real.csv").write_text("\n".join(rows) + "\n")
    monkeypatch.setattr(sys, "argv", [
        "build.py", "--model", f"good={tmp_path / 'good'}", "--model", f"bad={tmp_path / 'bad'}",
        "--real", str(tmp_path / "real.csv"), "--out", str(tmp_path / "page.html"),
        "--key", str(tmp_path / "key.json"), "--bars", "4", "--seconds", "3",
    ])  # fmt: skip
    build.main()
    return tmp_path / "page.html"


def test_the_page_is_blind_and_needs_nothing_else(page: Path) -> None:
    text = page.read_text()
    key = json.loads(page.with_name("key.json").read_text())
    assert [of["model"] for of in key["pieces"].values()] == ["good"] * 2 + ["bad"] * 2 + [
        "real music"
    ] * 2
    without_sound = re.sub(r"base64,[\w+/=]+", "", text)
    for word in ("good", "bad", "real music", str(page.parent)):
        assert word not in without_sound
    assert not re.findall(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", without_sound)
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert {piece["id"] for piece in data["pieces"]} == set(key["pieces"])
    assert all(len(piece["audio"]) > 5000 for piece in data["pieces"])
    assert sum("emotion" in piece for piece in data["pieces"]) == 4
    assert data["test"] == key["test"]


def answers_of(key: dict[str, Any], listener: str, seed: int) -> dict[str, Any]:
    """A listener who hears which pieces are good, and is a little unsure."""
    random = np.random.default_rng(seed)
    base = {"good": 4, "bad": 1, "real music": 5}
    found = {}
    for name, piece in key["pieces"].items():
        asked = ["human", "genre", *(["emotion"] if "emotion" in piece else [])]
        values = np.clip(base[piece["model"]] + random.integers(-1, 2, len(asked)), 1, 5)
        found[name] = dict(zip(asked, values.tolist(), strict=True))
    return {"test": key["test"], "listener": listener, "answers": found}


@pytest.fixture
def key() -> dict[str, Any]:
    pieces = {}
    for model in ("good", "bad", "real music"):
        for i in range(8):
            piece = {"model": model, "genre": ("jazz", "rock")[i % 2], "source": "x.mid"}
            pieces[f"{model}-{i}"] = piece | ({"emotion": "sad"} if model != "real music" else {})
    return {"test": "abc", "pieces": pieces}


def test_answers_become_means_with_intervals_and_agreement(
    fold: Any, key: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    paths = []
    for i in range(6):
        path = tmp_path / f"answers-{i}.json"
        path.write_text(json.dumps(answers_of(key, f"listener {i}", i)))
        paths.append(str(path))
    twice = answers_of(key, "listener 0", 99)  # saved too early, and again at the end
    twice["answers"] = dict(list(twice["answers"].items())[:2])
    (tmp_path / "early.json").write_text(json.dumps(twice))
    (tmp_path / "key.json").write_text(json.dumps(key))
    monkeypatch.setattr(sys, "argv", [
        "fold.py", "--key", str(tmp_path / "key.json"), "--out", str(tmp_path / "out"), *paths,
        str(tmp_path / "early.json"),
    ])  # fmt: skip
    fold.main()
    found = json.loads((tmp_path / "out" / "listening.json").read_text())
    assert found["listeners"] == 6
    human = found["questions"]["human"]["by"]["model"]
    given = [
        json.loads(Path(path).read_text())["answers"][f"good-{i}"]["human"]
        for path in paths for i in range(8)
    ]  # fmt: skip
    assert human["good"]["mean"] == pytest.approx(np.mean(given))
    assert human["good"]["answers"] == 48
    assert human["good"]["counts"] == [given.count(value) for value in range(1, 6)]
    low, high = human["good"]["ci95"]
    assert low < human["good"]["mean"] < high
    assert human["bad"]["ci95"][1] < low < human["real music"]["ci95"][0]
    assert 0.6 < found["questions"]["human"]["alpha"] <= 1
    assert "real music" not in found["questions"]["emotion"]["by"]["model"]
    assert set(found["questions"]["genre"]["by"]["genre"]) == {"jazz", "rock"}
    for name in ("listening", "listening-genre", "listening-emotion"):
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 10_000
    assert "| model: good |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"test": "other"}, "of test other"),
        ({"answers": {"nobody": {"human": 3}}}, "piece nobody is not in the key"),
        ({"answers": {"good-0": {"human": 6}}}, "human=6 is no answer"),
        ({"answers": {"good-0": {"taste": 3}}}, "taste=3 is no answer"),
    ],
)
def test_answers_that_are_none_are_rejected(
    change: dict[str, Any], says: str, fold: Any, key: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(answers_of(key, "a", 0) | change))
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        fold.read_answers([path], key)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"test": "abc"}'])
def test_a_damaged_file_is_rejected_by_name(
    text: str, fold: Any, key: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "answers.json"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(str(path))):
        fold.read_answers([path, tmp_path / "none.json"], key)


def test_a_page_that_was_handed_out_is_not_replaced(
    page: Path, build: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = page.with_name("key.json").read_bytes()
    with pytest.raises(SystemExit):
        build.main()
    assert "key.json is there" in capsys.readouterr().err
    assert page.with_name("key.json").read_bytes() == before
    for path in (page, page.with_name("key.json")):
        path.unlink()
    (page.parent / "real.csv").write_text("path,genre\ngone.mid,rock\n")
    with pytest.raises(SystemExit):
        build.main()
    assert "gone.mid" in capsys.readouterr().err


def test_agreement_is_one_where_all_agree_and_about_zero_by_chance(fold: Any) -> None:
    same = np.tile(np.array([1.0, 2, 3, 4, 5]), (4, 1))
    assert fold.agreement(same) == pytest.approx(1.0)
    chance = np.random.default_rng(0).integers(1, 6, (6, 200)).astype(float)
    assert abs(fold.agreement(chance)) < 0.05
    assert fold.agreement(np.array([[3.0, np.nan], [np.nan, 3.0]])) is None


def test_the_interval_is_wide_where_listeners_differ_or_pieces_do(fold: Any) -> None:
    """Many answers of two listeners who disagree say little, as do those to two pieces."""
    listeners = np.repeat(np.array([[1.0], [5.0]]), 100, axis=1)
    pieces = listeners.T.copy()
    alike = np.random.default_rng(0).integers(1, 6, (100, 100)).astype(float)
    for values, widest in ((listeners, True), (pieces, True), (alike, False)):
        low, high = fold._mean(values)["ci95"]
        assert (high - low > 2) == widest


def _browser(size: str, folder: Path) -> Any:
    """Headless Chromium, as Debian's ``chromium`` and ``chromium-driver`` have it."""
    webdriver = pytest.importorskip("selenium.webdriver")
    driver = shutil.which("chromedriver")
    if driver is None or shutil.which("chromium") is None:
        pytest.skip("no chromium and chromedriver here")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", f"--window-size={size}",
                     "--autoplay-policy=no-user-gesture-required"):  # fmt: skip
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    service = __import__("selenium.webdriver.chrome.service", fromlist=["Service"]).Service(driver)
    return webdriver.Chrome(options=options, service=service)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["1280,900", "390,844"])
def test_listeners_answer_in_a_browser(page: Path, fold: Any, size: str, tmp_path: Path) -> None:
    browser = _browser(size, tmp_path)
    try:
        browser.get(page.as_uri())
        run = browser.execute_script
        assert browser.find_element("id", "count").text == "6"
        browser.find_element("id", "begin").click()
        order = run("return state.order")
        body = browser.find_element("tag name", "body")
        for i, name in enumerate(order):
            assert f"Piece {i + 1} of 6" in browser.find_element("id", "place").text
            assert not browser.find_element("id", "next").is_enabled()
            n_questions = len(browser.find_elements("tag name", "fieldset"))
            if i == 0:  # with the mouse
                for box in browser.find_elements("tag name", "fieldset"):
                    box.find_elements("tag name", "label")[3].click()
                deadline = time.monotonic() + 20
                while not run("return document.getElementById('audio').currentTime > 0.2"):
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                assert not run("return document.getElementById('audio').error")
                # No sideways scrolling, on a phone neither.
                assert run("return document.documentElement.scrollWidth <= window.innerWidth")
                browser.find_element("id", "next").click()
                continue
            if i == 2:  # closed and opened again
                browser.get(page.as_uri())
                assert "Piece 3 of 6" in browser.find_element("id", "place").text
                body = browser.find_element("tag name", "body")
            body.send_keys("5" * n_questions)
            assert (
                run("return Object.keys(state.answers[arguments[0]]).length", name) == n_questions
            )
            body.send_keys("\ue007")  # Enter
        browser.find_element("id", "save").click()
        deadline = time.monotonic() + 20
        while not (saved := list(tmp_path.glob("answers-*.json"))):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(0.5)
    finally:
        browser.quit()
    key = json.loads(page.with_name("key.json").read_text())
    answers = fold.read_answers(saved, key)
    assert len(answers) == 4 * 3 + 2 * 2
    assert {answer.value for answer in answers if answer.piece == order[0]} == {4}
    assert {answer.value for answer in answers if answer.piece != order[0]} == {5}
