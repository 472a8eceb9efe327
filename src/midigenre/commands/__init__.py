"""One file per command; each has ``run(cfg, paths)`` and is dispatched by :mod:`midigenre.cli`."""
