"""The study of reading sees a note that is lost, one that is too long and another program."""

from __future__ import annotations

import runpy
from pathlib import Path

from midi import make_score, melody, to_bytes
from midigenre.midi.read import read_score

STUDY = Path(__file__).resolve().parents[2] / "experiments" / "07_reading" / "read.py"


def test_what_differs_from_mido_is_counted():
    study = runpy.run_path(str(STUDY))
    data = to_bytes(make_score(melody(2, program=5)))
    score = read_score(data)
    assert +study["compared"](data, score) == {"notes": 8, "end: as mido has it": 8}
    notes = score.tracks[0].notes
    notes[0].duration = 10_000
    del notes[7]
    score.tracks[0].program = 6
    assert +study["compared"](data, score) == {
        "notes": 8, "end: as mido has it": 6, "end: too late": 1, "lost": 1, "other program": 7,
    }  # fmt: skip
    assert study["mutant"](data, "a") == study["mutant"](data, "a") != study["mutant"](data, "b")
