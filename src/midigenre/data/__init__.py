"""From songs to batches.

``split`` deals songs to train, validation and test; ``prepare`` reads, cleans and encodes a corpus;
``shards`` holds the result as Arrow files; ``report`` counts it; ``phrases`` says which bars make a
phrase; ``batches`` plans and collates batches; ``datamodule`` gives them to Lightning.
"""
