"""Keys and values of all tokens, per conditioning stream and attention, for evaluations that
compute only some.

Rows of the sequence are [text | image | extra]; text and extra tokens are always computed, so that
only the image rows have to last. Keys are stored after normalisation and rotary positions:
positions never change.
"""

from __future__ import annotations

from .entry import AttendedKV
from .pooled import Pooled, number_of_pools, pools
from .store import KVStore, bytes_of

__all__ = ["KVStore", "AttendedKV", "Pooled", "bytes_of", "number_of_pools", "pools"]
