"""What a model is known by, so that what was learned of it in one run is found in the next."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..quadrature.spacing import difficulty

# What is the same in keys that may say something of each other.
SAME = ("family", "architecture", "weights", "turns")
# What makes such keys differ, nearest first.
NEAREST_FIRST = ("sigmas", "guidance", "size", "sampler", "references", "patches")
DIGITS = 4  # of a sigma after the point that count; rounding on another device is below them
SIDE = 1.2  # sides of a class of sizes are less than this factor apart
# Areas farther apart than this factor say nothing about each other: what was learned at 256 px cost
# up to 1.7 dB at 512 px, a factor of 4, and nothing at one of 1.5 (docs/results/learning.md).
NEAR_AREA = 2.0
# Share of a run, in `spacing.difficulty`, that what was learned has to be of. A part of the sigmas (image
# to image, one of two samplers) says nothing of the rest: there it cost up to 4.8 dB (docs/lab.md).
COVERED = 0.8
KINDS = {"references": bool, "sigmas": (list, tuple)}  # of fields that are not text


@dataclass(frozen=True, kw_only=True)
class ModelKey:
    """A model with its weights, as it is sampled."""

    family: str
    """Class of the diffusion model, e.g. "Flux"."""
    architecture: str
    """Family in `architectures.FAMILIES`; empty where it is not known."""
    weights: str
    """Fingerprint of the weights without patches, 16 hex digits."""
    patches: str = ""
    """Fingerprint of LoRAs and other patches of weights, with their strengths; empty for none."""
    sampler: str
    guidance: str
    """Class of the guider and its scales, e.g. "CFGGuider 2.5"."""
    size: str
    """See `size_class`."""
    references: bool = False
    """Whether a conditioning has reference latents."""
    turns: str = ""
    """What makes a run another one on its way, e.g. "SkipLayerGuidanceDiT 0.5": nodes that change
    guidance, and percents at which a conditioning or a ControlNet begins or ends; empty for nothing."""
    sigmas: tuple[float, ...]
    """(N + 1,)."""

    @property
    def name(self) -> str:
        """Stem of its file, without a folder in it: another one for every key that differs."""
        text = json.dumps({**self.to_json(), "sigmas": self._rounded}, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return f"{re.sub(r'[^A-Za-z0-9_]', '_', self.family)}-{digest[:12]}"

    def to_json(self) -> dict[str, Any]:
        """All fields by their names, but `turns` only where there are any: older files have none."""
        found = {**asdict(self), "sigmas": list(self.sigmas)}
        if not self.turns:
            del found["turns"]
        return found

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> ModelKey:
        """What `to_json` gave. Raises ValueError where a field is missing or of another kind."""
        if not isinstance(found, Mapping):
            raise ValueError(f"a model key is {type(found).__name__}, not fields by name")
        found = {"turns": "", **found}
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in found]
        if missing:
            raise ValueError(f"a model key has no {', '.join(missing)}")
        values = {name: found[name] for name in names}
        for name, value in values.items():
            if not isinstance(value, KINDS.get(name, str)):
                raise ValueError(f"{name} of a model key is {type(value).__name__}")
        if not all(map(_finite, values["sigmas"])):
            raise ValueError("sigmas of a model key are not all finite numbers")
        values["sigmas"] = tuple(map(float, values["sigmas"]))
        return cls(**values)

    def difference(self, other: ModelKey) -> tuple[str, ...] | None:
        """Fields in which another key differs, nearest first; none for the same. None where what was
        learned of the other says nothing about this one: other weights, another family, a run that is
        another one on its way, a size that is far from it, or sigmas that are hardly this one's."""
        if any(getattr(self, name) != getattr(other, name) for name in SAME):
            return None
        if self.size != other.size and not _near(_area(self.size), _area(other.size)):
            return None
        if not _covers(other.sigmas, self.sigmas):
            return None
        return tuple(
            name for name in NEAREST_FIRST if self._compared(name) != other._compared(name)
        )

    @property
    def _rounded(self) -> list[float]:
        """Its sigmas as far as they count."""
        return [round(sigma, DIGITS) + 0.0 for sigma in self.sigmas]  # no -0.0

    def _compared(self, name: str) -> Any:
        """A field as far as it counts."""
        return self._rounded if name == "sigmas" else getattr(self, name)


def size_class(sides: Sequence[int]) -> str:
    """Class of a latent's sides, e.g. "3x32x46" of frames, height and width, each one a typical
    length of its class: lengths are of one class where they round to the same power of 1.2, so that
    two of a class are less than 20 % apart, and those that differ by half never are of one. Raises
    ValueError for a side below 1."""
    return "x".join(str(round(SIDE ** round(math.log(side, SIDE)))) for side in sides)


def _area(size: str) -> int:
    """Positions of a latent of a class of sizes; 0 for what is none."""
    sides = size.split("x")
    return math.prod(map(int, sides)) if all(map(str.isdecimal, sides)) else 0


def _near(area: int, other: int) -> bool:
    return max(area, other) <= NEAR_AREA * min(area, other)


def _covers(known: Sequence[float], asked: Sequence[float]) -> bool:
    """Whether sigmas that something was learned of are most of a run's."""
    highest = max(known[0], asked[0])
    spans = [[difficulty(s[i], highest) for i in (0, -1)] for s in (known, asked)]
    (start, end), (first, last) = spans
    return min(end, last) - max(start, first) >= COVERED * (last - first)


def _finite(value: Any) -> bool:
    """Whether a value is a finite number."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)
