"""Training tasks: LightningModules, the optimizer and its schedule, callbacks.

``base`` has what all tasks share and ``fit``; ``classify``, ``pretrain`` and ``generate`` are the
tasks, each with its TensorBoard output; ``optim`` the optimizers and schedules; ``callbacks``
keeps checkpoints; ``loggers`` writes event files and the CSV log; ``predict`` runs a trained
classifier over phrases and songs, ``evaluate`` scores it on a split, ``explain`` says why.
"""
