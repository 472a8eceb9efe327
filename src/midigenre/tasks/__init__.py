"""Training tasks: LightningModules, the optimizer and its schedule, callbacks.

``base`` has what all tasks share and ``fit``; ``classify``, ``pretrain`` and ``generate`` are the
tasks, each with its TensorBoard output; ``optim`` the optimizers and schedules; ``callbacks``
keeps checkpoints; ``loggers`` writes event files and the CSV log; ``evaluate`` scores a classifier
on a split.

What a trained model needs imports no Lightning: ``kinds`` builds the models, ``predict`` runs a
classifier over phrases and songs, ``explain`` says why.
"""
