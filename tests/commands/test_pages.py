"""Every command on a page composes; the programs on the pages run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from midigenre.cli import main, overrides_of

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def commands(page):
    """The command lines of a page, as lists of words without ``midigenre``."""
    found = []
    for line in "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while "&&" in words:  # pip install ... && midigenre ...
            words = words[words.index("&&") + 1 :]
        if words and words[0] == "midigenre":
            found.append(words[1:])
    return found


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with the YAML files of the pages, and with those whose names stand for any."""
    folder = tmp_path_factory.mktemp("own")
    files = dict.fromkeys(("experiment/mine.yaml", "experiment/best.yaml"), "# @package _global_\n")
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        files |= dict(re.findall(r"^`conf/(\S+)`\n\n```yaml\n(.*?)^```", text, re.M | re.S))
    assert len(files) == 6
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def composed(words, own, capsys):
    """Composes the first and the last of the runs that a command line starts."""
    command, *given = words
    given = given[: given.index("--")] if "--" in given else given
    for option in ("-cd", "--config-dir"):
        if option in given:
            at = given.index(option)
            del given[at : at + 2]
    given = [g for g in given if g != "-m" and not g.startswith("hydra.searchpath=")]
    parsed = OverridesParser.create().parse_overrides(overrides_of(given))
    for end in (0, -1):  # of what is swept, the first and the last value
        overrides = [swept(*pair, end) for pair in zip(given, parsed, strict=True)]
        status = main([command, *overrides, "--config-dir", str(own), "--cfg", "job"])
        out, err = capsys.readouterr()
        assert status == 0, (words, err)
        assert out, words
        if overrides == given:
            break


def swept(text, override, end):
    """An override with one of its values."""
    if not override.is_sweep_override():
        return text
    key = override.input_line.partition("=")[0]
    if override.is_interval_sweep():
        return f"{key}={override.value().start}"
    return f"{key}={list(override.sweep_string_iterator())[end]}"


def in_turn():
    """Pages with commands; a fifth of a second for each command makes the long ones slow."""
    for page in PAGES:
        is_quick = page.parent.name == "howto" or page.stem in ("README", "tutorial")
        if commands(page):
            marks = [] if is_quick else [pytest.mark.slow]
            yield pytest.param(page, id=page.stem, marks=marks)


@pytest.mark.parametrize("page", in_turn())
def test_its_commands_compose(page, own, capsys):
    for words in commands(page):
        if page == PAGES[0] or words not in commands(PAGES[0]):
            composed(words, own, capsys)


def test_a_mistake_in_a_command_is_found(own, capsys):
    for words in (["train", "tokeniser=cp"], ["train", "-m", "model=tiny,smal"], ["predikt"]):
        with pytest.raises(AssertionError):
            composed(words, own, capsys)
    assert sum(len(commands(page)) for page in PAGES) > 140


@pytest.fixture
def songs(home):
    return sorted((home / "corpora").rglob("*.mid"))[:2]


def test_lines_are_read_as_the_page_reads_them(midigenre, home, toy_run, songs, tmp_path, capfd):
    (program,) = blocks(ROOT / "docs" / "howto" / "serving.md", "python")
    bad = tmp_path / "bad.mid"
    bad.write_bytes(b"no music")
    status, out, _ = midigenre("predict", f"run={toy_run}", "--", *map(str, [*songs, bad]))
    assert status == 0
    (home / "labels.jsonl").write_text(out, encoding="utf-8")
    exec(program, {})
    lines = capfd.readouterr().out.splitlines()
    answers = [json.loads(line) for line in out.splitlines()]
    assert len(lines) == 3
    for line, answer in zip(lines[:2], answers, strict=False):
        assert str(answer["path"]) in line
        assert answer["genre"] in line or "left to a person" in line
    assert "rejected" in lines[2]


def test_a_song_is_labelled_as_in_the_reference(midigenre, toy_run, songs, capfd):
    (program,) = blocks(ROOT / "docs" / "reference" / "index.md", "python")
    exec(program.replace("RUN", str(toy_run)).replace("song.mid", str(songs[0])), {})
    said = capfd.readouterr().out.strip()
    _, out, _ = midigenre("predict", f"run={toy_run}", "--", str(songs[0]))
    assert said == json.loads(out)["genre"]
