"""Models in plain PyTorch over packed phrases; they know :mod:`midigenre.spec` and nothing else.

==================  =================================================================
``embedding``       token ids of F fields to vectors; the only place where F matters
``positions``       place of a token in its phrase; rotary and learned positions
``attention``       attention inside each packed phrase, on CPU and GPU
``encoder``         the transformer of every task; bidirectional or causal by call
``encoder_layer``   one of its layers
``compiled``        its layers under ``torch.compile``, for training on a GPU
``local``           the convolution that may stand before its layers
``cache``           what a backbone keeps of the steps it has seen, for generation
``prefix``          vectors put before each phrase (CLS, conditions)
``pooling``         a phrase to one vector
``lstm``            the LSTM baseline, a backbone too
``heads``           label heads with their loss, class weights
``classifier``      phrases in, logits of each label out
``conditions``      labels to the vectors that tell a generator what to write
``field_head``      logits of a step's fields, one after the other
``generator``       phrases and conditions in, the next step out
``masking``         which tokens are hidden, and what is seen in their place
``masked``          phrases with hidden tokens in, those tokens out
``packed``          linear layers laid out for decoding
``quantize``        a generator with eight-bit weights, on CPU
==================  =================================================================

A backbone is any module with an attribute ``d_model`` and the call
``(h_ND, cu_seqlens, lengths, *, causal=False) -> h_ND``. One that generates also has ``new_state``,
``prefill`` and ``step`` (see :class:`Encoder`).
"""

from midigenre.models.attention import packed_attention
from midigenre.models.cache import KeyValueCache, RecurrentState, State
from midigenre.models.classifier import PhraseClassifier
from midigenre.models.conditions import ConditionEmbedding
from midigenre.models.embedding import FieldEmbedding
from midigenre.models.encoder import Encoder
from midigenre.models.encoder_layer import EncoderLayer
from midigenre.models.field_head import FieldHead
from midigenre.models.generator import Decoding, PhraseGenerator
from midigenre.models.heads import LabelHead, class_weights
from midigenre.models.lstm import LSTM
from midigenre.models.masked import MaskedHead, MaskedModel
from midigenre.models.masking import Masking
from midigenre.models.pooling import Pooling
from midigenre.models.positions import (
    LearnedPositions,
    Rotary,
    positions_N,
    rotary_tables,
    rotate,
    segments_N,
)
from midigenre.models.prefix import Prefixed, insert_prefix

__all__ = [
    "LSTM",
    "ConditionEmbedding",
    "Decoding",
    "Encoder",
    "EncoderLayer",
    "FieldEmbedding",
    "FieldHead",
    "KeyValueCache",
    "LabelHead",
    "LearnedPositions",
    "MaskedHead",
    "MaskedModel",
    "Masking",
    "PhraseClassifier",
    "PhraseGenerator",
    "Pooling",
    "Prefixed",
    "RecurrentState",
    "Rotary",
    "State",
    "class_weights",
    "insert_prefix",
    "packed_attention",
    "positions_N",
    "rotary_tables",
    "rotate",
    "segments_N",
]
