"""Region-adaptive sampling: most evaluations compute some of the image tokens."""

from .policy import INACTIVE, RegionPolicy
from .presets import paper, per_token_error
from .priority import DIRECTIONS, METRICS

__all__ = ["DIRECTIONS", "INACTIVE", "METRICS", "RegionPolicy", "paper", "per_token_error"]
