"""The twelve genres: one file a work, whole groups, true notes, a cache that survives a crash."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from symusic.core import ScoreTick

from midigenre.corpora import twelve, works
from midigenre.corpora.base import Listing
from midigenre.corpora.twelve import REAL, SYNTHESISED, Twelve
from midigenre.corpora.works import (
    MAX_SECTION_BARS,
    Notation,
    Work,
    _grid,
    catalogue,
    corpus_root,
    notation,
    parse,
    read_work,
    sections,
)
from midigenre.errors import RejectedSongError

# One short work of each kind of file, with and without a pickup, and with one-sided tie marks.
SAMPLES = (
    "bach/bwv293.mxl",
    "palestrina/Gloria_95_b.krn",
    "ryansMammoth/ArielHornpipe.abc",
    "essenFolksong/erk10.abc#51",
    "monteverdi/madrigal.4.9.mxl",
    "beethoven/opus59no3/movement3.mxl",
    "trecento/PMFC_12_6-Gloria Gratiosus.xml",
)


@pytest.fixture(scope="module")
def catalogues() -> dict[str, list[Work]]:
    return {genre: catalogue(genre) for genre in REAL}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("twelve")


@pytest.fixture(scope="module")
def listing(cache: Path) -> Listing:
    return Twelve(limit=24).songs(cache)


def named(catalogues: dict[str, list[Work]], path: str) -> Work:
    return next(w for w in catalogues[path.split("/")[0]] if w.corpus_path == path)


def first_onset(score: Any) -> int:
    """``Score.start()`` counts the tempo, too."""
    return min(int(n.time) for t in score.tracks for n in t.notes)


# --- catalogue ---------------------------------------------------------------------------------


def test_known_numbers_of_works(catalogues: dict[str, list[Work]]) -> None:
    counts = {genre: len(found) for genre, found in catalogues.items()}
    assert counts["beethoven"] == 22
    assert counts["monteverdi"] == 48
    assert counts["palestrina"] == 1318
    assert counts["ryansMammoth"] == 1059
    assert counts["essenFolksong"] > 8000


def test_one_file_a_work_and_no_analysis(catalogues: dict[str, list[Work]]) -> None:
    every = [work for found in catalogues.values() for work in found]
    assert all(w.path.suffix in (".mxl", ".xml", ".krn", ".abc") for w in every)
    assert len({w.work_id for w in every}) == len(every)
    assert len({w.corpus_path for w in every}) == len(every)
    stems = [(w.genre, str(w.path.with_suffix("")), w.number) for w in every]
    assert len(set(stems)) == len(stems)
    assert not any(re.search(r"_old|_bak|-sc\.", w.path.name) for w in every)
    assert all((corpus_root() / w.corpus_path.split("#")[0]).is_file() for w in every)
    assert all(re.fullmatch(r"[A-Za-z0-9.-]+", w.work_id) for w in every)


@pytest.mark.parametrize(
    ("paths", "together"),
    [
        (("beethoven/opus18no1/movement1.mxl", "beethoven/opus18no1/movement4.mxl"), True),
        (("beethoven/opus59no1/movement1.mxl", "beethoven/opus59no2/movement1.mxl"), False),
        (("palestrina/Kyrie_02.krn", "palestrina/Agnus_I_02.krn"), None),
        (("monteverdi/madrigal.5.4.mxl", "monteverdi/madrigal.5.8.mxl"), True),
        (("monteverdi/madrigal.5.1.mxl", "monteverdi/madrigal.5.2.mxl"), False),
        (
            ("trecento/PMFC_06-Jacopo-03a-Di_Novo.xml", "trecento/PMFC_06-Jacopo-03b-Di_Novo.xml"),
            True,
        ),
        (
            ("trecento/PMFC_24_1-Gloria Ciconia 1.xml", "trecento/PMFC_24_8-Gloria Ciconia 8.xml"),
            False,
        ),
        (("ryansMammoth/OldZipCoonReel_A.abc", "ryansMammoth/OldZipCoonReel_G.abc"), True),
        (("bach/bwv248.5.mxl", "bach/bwv248.12-2.mxl"), True),
        (("bach/bwv293.mxl", "bach/bwv413.mxl"), False),
        (("essenFolksong/erk10.abc#0", "essenFolksong/erk10.abc#1"), True),  # E0001, E0001A
    ],
)
def test_movements_and_variants_share_a_group(
    catalogues: dict[str, list[Work]], paths: tuple[str, str], together: bool | None
) -> None:
    first, second = (named(catalogues, path) for path in paths)
    if together is None:  # what their own heads say
        masses = [
            re.search(r"!!!OPR: *(.*)", w.path.read_text("utf-8", "replace"))
            for w in (first, second)
        ]
        assert masses[0]
        assert masses[1]
        together = masses[0][1] == masses[1][1]
    assert (first.group == second.group) == together


def test_a_mass_is_one_group(catalogues: dict[str, list[Work]]) -> None:
    masses: dict[str, set[str]] = defaultdict(set)
    for work in catalogues["palestrina"]:
        mass = re.search(
            r"!!!OPR: *(.*?) *$", work.path.read_text("utf-8", "replace"), re.MULTILINE
        )
        assert mass
        masses[mass[1]].add(work.group)
    assert len(masses) > 90
    assert all(len(groups) == 1 for groups in masses.values())


# --- conversion --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SAMPLES)
def test_notes_equal_music21s(catalogues: dict[str, list[Work]], path: str) -> None:
    """Our notes against music21's own ``stripTies`` (its MIDI writer expands repeats)."""
    work = named(catalogues, path)
    score = parse(work)
    theirs = []
    for part in score.parts:
        theirs += [
            (round(float(n.offset), 3), round(float(n.quarterLength), 3), p.midi)
            for n in part.stripTies().flatten().notes
            if n.quarterLength > 0
            for p in n.pitches
        ]
    found = read_work(work)
    rows = np.concatenate([rows for _, rows in found.parts])
    shift = rows[:, 0].min() - min(onset for onset, _, _ in theirs)
    ours = [(round(a - shift, 3), round(b - a, 3), int(p)) for a, b, p in rows]
    assert Counter(ours) == Counter(theirs)


@pytest.mark.parametrize("path", ["bach/bwv293.mxl", "palestrina/Gloria_95_b.krn"])
def test_notes_equal_music21s_midi(
    catalogues: dict[str, list[Work]], path: str, tmp_path: Path
) -> None:
    work = named(catalogues, path)
    score = parse(work)
    for mark in list(score.recurse().getElementsByClass("RepeatMark")):
        mark.activeSite.remove(mark)
    for measure in score.recurse().getElementsByClass("Measure"):
        measure.leftBarline = measure.rightBarline = None  # no repeats
    score.write("midi", tmp_path / "theirs.mid")
    (ours, _), *_ = sections(read_work(work), max_bars=1000)
    lists = []
    for midi in (ScoreTick.from_file(tmp_path / "theirs.mid"), ours):
        start = first_onset(midi)
        lists.append(
            sorted(
                (round((n.time - start) / midi.tpq, 2), n.pitch)
                for t in midi.tracks
                for n in t.notes
            )
        )
    assert lists[0] == lists[1]


@pytest.mark.parametrize("path", SAMPLES)
def test_sections_partition_the_notes(catalogues: dict[str, list[Work]], path: str) -> None:
    found = read_work(named(catalogues, path))
    (whole, _), *_ = sections(found, max_bars=10_000)
    parts = list(sections(found, max_bars=8))
    assert all(1 <= n_bars <= 8 for _, n_bars in parts)

    # Onsets counted in each section's own bars: compare the pitches in order of time.
    def pitches(score: Any) -> Counter[int]:
        return Counter(n.pitch for t in score.tracks for n in t.notes)

    assert sum((pitches(s) for s, _ in parts), Counter()) == pitches(whole)
    for section, n_bars in parts:
        signs = section.time_signatures
        length = section.tpq * 4 * signs[0].numerator // signs[0].denominator
        assert first_onset(section) < length  # no empty bar at the beginning
        if len(signs) == 1:
            assert section.end() <= n_bars * length


def test_pickup_is_padded_at_its_beginning() -> None:
    # 3/4 with a quarter's pickup, a bar, a bar split by a repeat sign (2 + 1), a short bar, a bar.
    old = np.array([0, 1, 4, 6, 7, 9, 12.0])
    starts, meters, shift = _grid(old, [(3, 4)] * 6)
    assert starts.tolist() == [0, 3, 6, 9, 12, 15]
    assert len(meters) == 5
    assert shift.tolist() == [2, 2, 2, 2, 2, 3]


def test_bars_have_the_length_of_their_meter(catalogues: dict[str, list[Work]]) -> None:
    for path in SAMPLES:
        found = read_work(named(catalogues, path))
        lengths = [4 * n / d for n, d in found.meters]
        assert np.allclose(np.diff(found.starts), lengths)


def test_no_meter_is_refused(catalogues: dict[str, list[Work]]) -> None:
    with pytest.raises(RejectedSongError, match="no meter"):
        read_work(named(catalogues, "essenFolksong/lot.abc#66"))


def test_too_large_a_file_is_refused(
    catalogues: dict[str, list[Work]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(works.MAX_NOTATION_BYTES, ".mxl", 10)
    with pytest.raises(RejectedSongError, match="bytes"):
        parse(named(catalogues, "bach/bwv293.mxl"))


def test_unison_of_two_voices_is_one_note() -> None:
    rows = np.array([[0, 1, 60], [0, 2, 60], [1, 3, 60], [2, 3, 62.0]])
    (score, _), *_ = sections(Notation([("p", rows)], np.array([0, 4.0]), [(4, 4)]))
    notes = [(n.time / score.tpq, n.duration / score.tpq, n.pitch) for n in score.tracks[0].notes]
    assert notes == [(0, 1, 60), (1, 2, 60), (2, 1, 62)]


def test_a_score_without_notes_is_refused() -> None:
    from music21 import converter, stream

    score = stream.Score([converter.parse("tinyNotation: 4/4 r1 r1")])
    with pytest.raises(RejectedSongError, match="empty"):
        notation(score)


# --- the corpus --------------------------------------------------------------------------------


def test_limit_is_stratified_and_complete(listing: Listing) -> None:
    counts = Counter(s.labels["genre"] for s in listing.songs)
    assert counts == dict.fromkeys(REAL + SYNTHESISED, 2)
    assert Twelve().classes() == {"genre": REAL + SYNTHESISED}
    assert (Twelve().tracks, Twelve().neutral) == ("merged", True)


def test_rows_are_whole(listing: Listing) -> None:
    assert len({s.song_id for s in listing.songs}) == len(listing.songs)
    for song in listing.songs:
        score = ScoreTick.from_file(song.path)
        assert score.note_num() > 0
        assert len(score.time_signatures) >= 1
        real = song.labels["genre"] in REAL
        assert song.source == ("music21" if real else "synthesised")
        assert (song.group is not None) == real
        assert set(song.extra) == {"title", "corpus_path", "section"}
        assert ".rntxt" not in song.extra["corpus_path"]


def test_seed_decides_the_files(tmp_path: Path) -> None:
    def content(seed: int, folder: str) -> list[bytes]:
        songs = Twelve(limit=12, seed=seed).songs(tmp_path / folder).songs
        return [s.path.read_bytes() for s in songs if s.labels["genre"] != "beethoven"]

    monkey = pytest.MonkeyPatch()
    monkey.setattr(twelve, "REAL", ("bach", "essenFolksong"))
    try:
        assert content(0, "a") == content(0, "b")
        assert content(0, "a") != content(1, "a")
    finally:
        monkey.undo()


def test_second_call_converts_nothing(
    cache: Path, listing: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twelve, "catalogue", None)
    monkeypatch.setattr(twelve, "_convert", None)
    assert Twelve(limit=24).songs(cache) == listing


class _Crash(RuntimeError):
    pass


@pytest.fixture
def two_genres(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quick classes only."""
    monkeypatch.setattr(twelve, "REAL", ("bach", "essenFolksong"))
    monkeypatch.setattr(twelve, "SYNTHESISED", ("pop",))


@pytest.mark.usefixtures("two_genres")
def test_resumes_after_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_before: list[str] = []
    original = works.read_work

    def counted(work: Work) -> Notation:
        read_before.append(work.work_id)
        return original(work)

    monkeypatch.setattr(twelve, "read_work", counted)
    corpus = Twelve(songs_per_class=4)

    def crash(what: str, done: int, total: int) -> None:
        if done >= 3:
            raise _Crash

    with pytest.raises(_Crash):
        corpus.songs(tmp_path, progress=crash)
    assert not list(tmp_path.rglob("index.json"))
    done = len(read_before)
    assert done >= 3
    resumed = corpus.songs(tmp_path)
    assert len(read_before) == len(set(read_before)), "a work was converted twice"
    assert len(read_before) > done
    fresh = corpus.songs(tmp_path / "fresh")
    assert [s.song_id for s in resumed.songs] == [s.song_id for s in fresh.songs]
    assert [s.path.read_bytes() for s in resumed.songs] == [
        s.path.read_bytes() for s in fresh.songs
    ]
    assert not list(tmp_path.rglob(".*.mid*")), "temporary files are left"


@pytest.mark.usefixtures("two_genres")
def test_failing_works_are_reported_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = works.read_work
    failed: list[str] = []

    def failing(work: Work) -> Notation:
        if work.genre == "bach" and len(failed) < 2:
            failed.append(work.work_id)
            raise RuntimeError("badly formed repeats\nand a second line")
        return original(work)

    monkeypatch.setattr(twelve, "read_work", failing)
    found = Twelve(songs_per_class=3).songs(tmp_path)
    assert {u.song_id for u in found.unusable} == set(failed)
    assert {u.reason for u in found.unusable} == {"not_written"}
    assert {u.detail for u in found.unusable} == {"RuntimeError: badly formed repeats"}
    assert all(u.labels == {"genre": "bach"} and u.path.exists() for u in found.unusable)
    assert Counter(s.labels["genre"] for s in found.songs)["bach"] == 3


def test_choice_spreads_over_groups_whatever_the_batches() -> None:
    choice = twelve._Choice("palestrina", 40, 0)
    rows = [{"song_id": "x", "section": "1/1"}] * 3
    record = {"sections": rows, "reason": "", "detail": ""}
    choice.records = {work.work_id: record for work in choice.order}
    everything, _ = choice.picked()
    assert len(everything) == 40
    per_group = Counter(work.group for work, _ in everything)
    assert max(per_group.values()) <= choice.per_group <= 4

    stepwise = twelve._Choice("palestrina", 40, 0)
    while wanted := stepwise.wanted():
        for work in wanted[:5]:
            stepwise.records[work.work_id] = record
    assert stepwise.picked()[0] == everything


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"corpus\.songs_per_class"):
        Twelve(songs_per_class=0)


@pytest.mark.slow
def test_full_conversion(tmp_path: Path) -> None:
    found = Twelve().songs(tmp_path, n_workers=2)
    counts = Counter(s.labels["genre"] for s in found.songs)
    assert set(counts) == set(REAL + SYNTHESISED)
    assert min(counts.values()) >= 100
    groups: dict[str, set[str]] = defaultdict(set)
    for song in found.songs:
        score = ScoreTick.from_file(song.path)
        sign = score.time_signatures[0]
        assert first_onset(score) < score.tpq * 4 * sign.numerator // sign.denominator
        if song.group:
            groups[str(song.labels["genre"])].add(song.group)
    assert all(len(names) >= 10 for names in groups.values())
    assert MAX_SECTION_BARS == 32
