"""What is learned: LightningModules, the optimizer and its schedule, callbacks.

``classify`` labels phrases; ``optim`` builds AdamW and the learning-rate schedule; ``callbacks``
keeps checkpoints and writes what a person looks at in TensorBoard; ``loggers`` writes the event
files and the CSV log; ``predict`` runs a trained model over phrases and ``evaluate`` scores it on a
split.
"""
