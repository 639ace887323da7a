"""
Learns from feedback which target a task belongs to: an online model, pure numpy, one lesson at a time.

It never reads a clock or the network, and keeps no global state: a model is the fold of its lessons.
"""

from hopper_learning.encoder import Encoder, WordLlamaEncoder
from hopper_learning.errors import (
    EncoderMissing,
    LearningError,
    SnapshotCorrupt,
    SnapshotOfOtherEncoder,
    SnapshotTooNew,
    UnknownTarget,
)
from hopper_learning.features import Text
from hopper_learning.model import Explanation, Model, Opinion, Prediction, Settings, Target, Weighed

__all__ = [
    "Encoder",
    "EncoderMissing",
    "Explanation",
    "LearningError",
    "Model",
    "Opinion",
    "Prediction",
    "Settings",
    "SnapshotCorrupt",
    "SnapshotOfOtherEncoder",
    "SnapshotTooNew",
    "Target",
    "Text",
    "UnknownTarget",
    "Weighed",
    "WordLlamaEncoder",
]
