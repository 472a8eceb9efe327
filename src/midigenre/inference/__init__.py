"""What a trained model does for its user: a classifier's answers and vectors, a generator's pieces.

Commands and :func:`midigenre.load` share it; nothing here imports Lightning.
"""
