"""Where songs and labels come from: one file for each source of music.

A corpus lists :class:`~midigenre.corpora.base.SongRef` rows that point at MIDI files; everything
after that (cleaning, tokens, split, shards) is the same for all of them.
"""
