"""Keys and values of all tokens, per cond and attention, for evaluations that compute only some.

Rows of the sequence are [text | image | extra]; text and extra tokens are always computed, so that
only the image rows have to last. Keys are kept after normalisation and rotary positions: positions
never change.
"""

from __future__ import annotations

from .entry import AttendedKV, Cond, KVEntry, Merge, Write
from .last import EightBitKV, HostKV, LastKV
from .none import NoKV
from .predicted import KVSigmas, PredictedKV
from .store import ENTRIES, KVStore, bytes_of, missing

__all__ = [
    "AttendedKV",
    "Cond",
    "ENTRIES",
    "EightBitKV",
    "HostKV",
    "KVEntry",
    "KVSigmas",
    "KVStore",
    "LastKV",
    "Merge",
    "NoKV",
    "PredictedKV",
    "Write",
    "bytes_of",
    "missing",
]
