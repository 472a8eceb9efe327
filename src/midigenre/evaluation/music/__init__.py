"""Is generated music any good, and was it copied? Measures of lists of songs.

Everything here works on cleaned songs (:class:`midigenre.midi.song.Song`) or on embeddings given as
arrays; nothing knows a model. What the functions return is plain data, ready for JSON.

* ``control``: whether a judge finds the requested class, and whether the judge is independent.
* ``descriptors``: what bars hold; one number or histogram per song (entropy, groove, ...).
* ``distance``: overlap of generated with real descriptors and the Fréchet distance of embeddings,
  each with its floor.
* ``structure``: self-similarity, repetition, course of a piece, whether it ends on the tonic.
* ``novelty``: runs of notes and of bars that a piece shares with the training set.
"""
