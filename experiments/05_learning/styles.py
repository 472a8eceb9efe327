"""A harder manifest from one with columns ``source`` and ``style``: the style within its source.

    python experiments/05_learning/styles.py MANIFEST.csv OUT.csv

Where each source has its own genres, the source gives the genre away and any method scores high.
Here a class is a style of one source (a composer, a jazz style, a kind of dance, a quadrant of
emotion), so that what is asked is always asked within a source. Classes with fewer than ``--least``
songs are left out. Train on it with ``corpus=manifest corpus.path=OUT.csv
corpus.root=FOLDER_OF_THE_MANIFEST``.
"""

import argparse
import csv
from collections import Counter
from pathlib import Path

CLASSICAL = {"bach", "beethoven", "haydn"}
"""Composers that two sources have: one class each."""


def class_of(row):
    """The class of a song, None where its source says nothing about it."""
    source, style, genre = row["source"], row["style"].lower(), row["genre"]
    if source in ("groove", "mma_synth"):  # several genres each
        return f"{source}-{genre}"
    if source == "emopia_cp":
        return f"{source}-{row['emotion']}"
    if source == "wjazzd":  # STYLE/FEEL
        return f"{source}-{style.split('/')[0]}"
    if source == "nottingham" and style.startswith("reels"):  # in several files by their titles
        return f"{source}-reels"
    if not style:
        return None
    classical = source == "asap" or style in CLASSICAL
    return f"{'classical' if classical else source}-{style}"


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--least", type=int, default=18, help="songs of the smallest class")
    args = parser.parse_args()
    with args.manifest.open(newline="", encoding="utf-8") as file:
        songs = [(row, name) for row in csv.DictReader(file) if (name := class_of(row))]
    counts = Counter(name for _, name in songs)
    kept = [(row, name) for row, name in songs if counts[name] >= args.least]
    with args.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "genre", "song_id"])
        writer.writerows([row["path"], name, row["song_id"]] for row, name in kept)
    print(f"{len(kept):,} songs of {len({name for _, name in kept})} classes in {args.out}")


if __name__ == "__main__":
    main()
