"""Labels as a study wants them: classes merged, renamed or left out."""

from __future__ import annotations

import difflib
import shlex
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from midigenre.corpora.base import Corpus, Listing, SongRef, Unusable
from midigenre.errors import UserError
from midigenre.spec import LabelSpec
from midigenre.wording import NAMED, plural


@dataclass(frozen=True)
class LabelSettings:
    """How the labels of a corpus are changed before its songs are split.

    Attributes:
        map: For each label the classes that get another name, all at once (``{"a": "b", "b": "a"}``
            swaps two). Equal names merge; None leaves the songs of the class out; an empty text
            keeps them without this label, for pretraining.
        min_songs: Classes with fewer usable songs are left out with their songs: one bound for all
            labels, or one for each of some labels. Byte-identical copies count as one.

    Raises:
        UserError: A value has the wrong type.
    """

    map: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    min_songs: int | Mapping[str, int] | None = None

    @classmethod
    def from_config(cls, node: Mapping[str, Any]) -> LabelSettings:
        """From the config node ``labels``; raises as the class does."""
        names = node.get("map") or {}
        if not isinstance(names, Mapping):
            raise UserError(f"labels.map={names}: write labels.map.LABEL.CLASS=NAME")
        # YAML reads names such as 80 as numbers.
        by_label = {
            label: {str(k): v for k, v in to.items()} if isinstance(to, Mapping) else to
            for label, to in names.items()
        }
        return cls(by_label, node.get("min_songs"))

    def __post_init__(self) -> None:
        bounds = self.min_songs
        for n in bounds.values() if isinstance(bounds, Mapping) else [bounds]:
            if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
                raise UserError(
                    f"labels.min_songs={bounds} must be a whole number, 1 or more, or null; for "
                    "one label only write 'labels.min_songs={genre: 20}'"
                )
        for label, names in self.map.items():
            if not isinstance(names, Mapping):
                raise UserError(f"labels.map.{label}={names}: write labels.map.{label}.CLASS=NAME")
            for name, to in names.items():
                if to is not None and (not isinstance(to, str) or (to and not to.strip())):
                    raise UserError(
                        f"labels.map.{label}.{name}={to}: give the class another name, null to "
                        "leave its songs out, or nothing to keep them without this label"
                    )

    def bound(self, label: str) -> int | None:
        """The least songs of a class of this label; None for no bound."""
        bounds = self.min_songs
        return bounds.get(label) if isinstance(bounds, Mapping) else bounds


def mapped(listing: Listing, corpus: Corpus, settings: LabelSettings) -> Listing:
    """The listing with the classes of ``settings.map``; dropped songs have ``dropped_label``.

    Raises:
        UserError: A label or a class that the corpus does not have, with the nearest name; or no
            song is left.
    """
    bounds = settings.min_songs if isinstance(settings.min_songs, Mapping) else {}
    for setting, labels in (("map", settings.map), ("min_songs", bounds)):
        for label in labels:
            if label not in corpus.labels:
                near = _near(label, corpus.labels)
                raise UserError(f"labels.{setting}.{label}: no such label{near}")
    for label, names in settings.map.items():
        known = {*(corpus.classes() or {}).get(label, ()), *_classes(listing.songs, label)}
        for name in names:
            if name not in known:
                raise UserError(
                    f"labels.map.{label}.{name}: corpus {corpus.name!r} has no {label} "
                    f"{name!r}{_near(name, sorted(known))}"
                )
    songs: list[SongRef] = []
    dropped: list[Unusable] = []
    for song in listing.songs:
        renamed = {
            label: names[held]
            for label, names in settings.map.items()
            if (held := song.labels.get(label)) is not None and held in names
        }
        if gone := [label for label, new in renamed.items() if new is None]:
            detail = " and ".join(f"labels.map.{k}.{song.labels[k]}=null" for k in gone)
            dropped.append(Unusable(song.song_id, song.path, "dropped_label", detail, song.labels))
        elif renamed:
            new = {label: name or None for label, name in renamed.items()}
            songs.append(replace(song, labels={**song.labels, **new}))
        else:
            songs.append(song)
    if dropped and not songs:
        raise UserError(f"labels.map leaves none of the {len(dropped)} songs")
    return replace(
        listing,
        songs=songs,
        unusable=[*listing.unusable, *dropped],
        remarks=[*listing.remarks, *_look_alikes(songs, corpus.labels)],
    )


def _look_alikes(songs: Sequence[SongRef], labels: Iterable[str]) -> list[str]:
    """Classes that look alike: they differ in case, spaces or how a letter is coded."""
    remarks = []
    for label in labels:
        alike: dict[str, Counter[str]] = {}
        for name, n in Counter(song.labels.get(label) for song in songs).items():
            if name is not None:
                plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
                alike.setdefault(plain, Counter())[name] = n
        for names in alike.values():
            (most, _), *others = names.most_common()
            remarks += [
                f"{label} {name!r} ({plural(n, 'song')}) and {most!r} look alike and are two "
                f"classes; to make them one: {shlex.quote(f'labels.map.{label}.{name}={most}')}"
                for name, n in others
            ]
    more = len(remarks) - NAMED
    return remarks[:NAMED] + ([f"{more:,} more classes look like another one"] if more > 0 else [])


def without_rare(
    songs: Sequence[SongRef],
    corpus: Corpus,
    settings: LabelSettings,
    content: Callable[[SongRef], bytes],
    usable: Callable[[SongRef], bool],
) -> tuple[list[SongRef], list[Unusable]]:
    """Takes out the classes with fewer than ``settings.min_songs`` songs that can be used.

    Removing a song for its rare emotion also leaves its genre one song fewer, so this repeats until
    every remaining class is large enough. ``content`` names a song's bytes, equal ones count
    once; ``usable`` is asked of no more songs than the bound needs.

    Returns:
        The songs that are left, and the others with the reason ``rare_label``.

    Raises:
        UserError: No class is large enough.
    """
    bounds = {label: n for label in corpus.labels if (n := settings.bound(label)) is not None}
    asked: dict[str, bool] = {}
    left, rare = list(songs), []
    changed = True
    while changed:
        changed = False
        for label, least in bounds.items():
            for name in sorted(_classes(left, label)):
                those = [song for song in left if song.labels.get(label) == name]
                found: set[bytes] = set()
                for song in those:
                    if len(found) < least and song.song_id not in asked:
                        asked[song.song_id] = usable(song)
                    if len(found) < least and asked[song.song_id]:
                        found.add(content(song))
                if len(found) >= least:
                    continue
                changed = True
                detail = (
                    f"{label} {name!r} has {plural(len(found), 'song')} that can be used, fewer "
                    f"than {least} (labels.min_songs)"
                )
                left = [song for song in left if song.labels.get(label) != name]
                rare += [Unusable(s.song_id, s.path, "rare_label", detail, s.labels) for s in those]
    if rare and not left:
        raise UserError(
            f"labels.min_songs={settings.min_songs} leaves no song: no class of "
            f"{' and '.join(bounds)} has that many; give a smaller number"
        )
    return left, rare


def label_spec(
    corpus: Corpus, songs: Sequence[SongRef], settings: LabelSettings = LabelSettings()
) -> LabelSpec:
    """The classes of the songs: in the corpus's own order where it has one, else sorted.

    A renamed class takes the place of the first one that becomes it, a merged one that of the class
    whose name it takes. Classes that the corpus knows stay without a song, unless
    ``settings.min_songs`` asks for some.
    """
    fixed = corpus.classes() or {}
    classes = {}
    for label in corpus.labels:
        found = _classes(songs, label)
        names: Iterable[str] = sorted(found)
        if label in fixed:
            to = {name: settings.map.get(label, {}).get(name, name) for name in fixed[label]}
            stay = {name for name, new in to.items() if name == new}
            names = [new for name, new in to.items() if new and (name == new or new not in stay)]
            names = [n for n in dict.fromkeys(names) if not settings.bound(label) or n in found]
        classes[label] = tuple(names)
    return LabelSpec(classes)


def _classes(songs: Iterable[SongRef], label: str) -> set[str]:
    return {name for song in songs if (name := song.labels.get(label)) is not None}


def _near(name: str, options: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, options, 1)
    shown = ", ".join(options[:20]) + (" ..." if len(options) > 20 else "")
    return f"; {f'did you mean {near[0]}? ' if near else ''}there is {shown}"
