"""Groups of songs by a pattern on the names of their files: artists, albums."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from midigenre.corpora.base import SongRef
from midigenre.errors import UserError


class GroupPattern:
    """Reads a song's group from its path below the corpus's root, written with ``/``.

    Args:
        pattern: A regular expression of Python, looked for anywhere in the path. Its group named
            ``group``, else its first one, is the song's group. None groups nothing.

    Raises:
        UserError: It is no regular expression, or it has no group.
    """

    def __init__(self, pattern: str | None) -> None:
        self._pattern = None
        if pattern is None:
            return
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise UserError(
                f"corpus.group_pattern={pattern} is no regular expression: {error}"
            ) from error
        if self._pattern.groups == 0:
            raise UserError(
                f"corpus.group_pattern={pattern} has no group; put what names the artist or album "
                r"in parentheses, for instance corpus.group_pattern='([^/]+) - [^/]*$'"
            )

    def grouped(self, songs: Sequence[SongRef]) -> tuple[list[SongRef], list[str]]:
        """The songs with their groups, and a remark on those that the pattern does not match.

        Args:
            songs: Songs whose ids are their paths below the corpus's root.

        Raises:
            UserError: It matches no song.
        """
        if self._pattern is None:
            return list(songs), []
        which = "group" if "group" in self._pattern.groupindex else 1
        out: list[SongRef] = []
        names: dict[str, str] = {}  # one text for all songs of a group
        for song in songs:
            match = self._pattern.search(song.song_id)
            group = (match[which] or None) if match else None
            out.append(replace(song, group=group and names.setdefault(group, group)))
        alone = [song.song_id for song in out if song.group is None]
        if len(alone) == len(out):
            raise UserError(
                f"corpus.group_pattern={self._pattern.pattern} matches none of {len(out)} files; "
                f"the first is {alone[0]}"
            )
        if not alone:
            return out, []
        remark = (
            f"corpus.group_pattern does not match {len(alone):,} of {len(out):,} files, which "
            f"stand alone; the first: {alone[0]}"
        )
        return out, [remark]
