"""From songs to batches.

``prepare`` reads, cleans and encodes a corpus; ``duplicates`` finds equal files; ``split`` deals
songs to train, validation and test; ``shards`` holds the result as Arrow files; ``report`` counts
it; ``phrases`` says which bars make a phrase; ``batches`` plans and collates batches;
``datamodule`` gives them to Lightning.
"""
