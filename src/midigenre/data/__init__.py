"""From songs to batches.

``prepare`` reads, cleans and encodes a corpus, each file in a ``sandbox``; ``duplicates``
finds copies; ``splits`` assigns songs to train, validation and test; ``shards`` holds the
result as Arrow files; ``report`` counts it; ``phrases`` says which bars make a phrase; ``sampler``
plans and collates batches; ``datamodule`` gives them to Lightning.
"""
