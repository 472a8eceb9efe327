"""Models in plain PyTorch over packed phrases; they know :mod:`midigenre.spec` and nothing else.

===============  =================================================================================
``transformer``  the classifier in one file, with the encoder of every task
``generator``    what the generator has beside it: conditions, a head for the next token, decoding
``masking``      masked modelling: what is hidden, and its prediction
``lstm``         the LSTM baseline, a backbone too
``sequences``    packed sequences, attention inside them, rows that grow token by token
``kernels``      faster insides, put into a finished model
===============  =================================================================================
"""

from midigenre.models.generator import ConditionEmbedding, Decoding, FieldHead, PhraseGenerator
from midigenre.models.lstm import LSTM
from midigenre.models.masking import MaskedHead, MaskedLoss, MaskedModel, Masking
from midigenre.models.transformer import (
    Encoder,
    FieldEmbedding,
    LabelHead,
    PhraseClassifier,
    Pooling,
)

__all__ = [
    "LSTM", "ConditionEmbedding", "Decoding", "Encoder", "FieldEmbedding", "FieldHead", "LabelHead",
    "MaskedHead", "MaskedLoss", "MaskedModel", "Masking", "PhraseClassifier", "PhraseGenerator",
    "Pooling",
]  # fmt: skip
