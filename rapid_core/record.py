"""What happened in a run: the `rapid-record`, its JSON form, the log that keeps the last ones, and
its words."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

FORMAT, VERSION = "rapid-record", 1
KEPT = 8  # finished records a log remembers


@dataclass(frozen=True)
class EvaluationRecord:
    """One evaluation: level, share of image tokens that ran, cost (FLOPs) and estimated forecast
    error per image.

    density: share of the pairs of image tiles that attention was to look at, per image; empty where
    nobody chose one. measures: the density that was measured against dense attention, None where
    none was; empty as `density`. tokens: bit sets (see `pack`) of the image tokens that ran, None
    for all or none; empty where nobody chose any."""

    index: int
    sigma: float
    occurrence: int  # n-th evaluation in a row at this noise level (heun and its like look twice)
    levels: tuple[str, ...]
    share: tuple[float, ...]
    cost: tuple[float, ...]
    dense_cost: tuple[float, ...]
    error: tuple[float | None, ...]
    measured: tuple[float | None, ...]
    reasons: tuple[str, ...] = ()
    tokens: tuple[str | None, ...] = ()
    density: tuple[float, ...] = ()
    measures: tuple[float | None, ...] = ()
    seconds: float = 0.0  # from the end of the evaluation before, or the loop's beginning; with the sampler's own work

    @property
    def thin(self) -> bool:
        """Whether any attention was sparse, or measured against dense attention."""
        return any(d < 1 for d in self.density) or any(m is not None for m in self.measures)

    @property
    def whole(self) -> bool:
        """Whether everything was computed, and nothing measured beside it."""
        ran = all(level == "run" for level in self.levels) and all(
            share == 1 for share in self.share
        )
        return ran and not self.thin


@dataclass(frozen=True)
class RunRecord:
    """One sampling run. `status`: finished, interrupted or failed; `seconds`: the sampling loop."""

    sampler: str
    family: str
    shape: tuple[int, ...]
    sigmas: tuple[float, ...]
    policies: tuple[dict, ...]
    evaluations: tuple[EvaluationRecord, ...]
    seconds: float
    bytes: int
    status: str = "finished"
    notes: tuple[str, ...] = ()
    fingerprint: str = ""  # of the latent that came out, so that a report finds its run
    grid: tuple[int, int, int] | None = (
        None  # frames, rows and columns of image tokens, where policies chose any
    )
    due: int | None = (
        None  # evaluations of a dense run of all images, where these are not at the same noise levels
    )

    @property
    def totals(self) -> dict:
        """Sums over evaluations and images; `speedup_allowed` is dense over spent FLOPs."""
        levels = Counter(level for e in self.evaluations for level in e.levels)
        number = sum(levels.values()) if self.due is None else self.due
        cost = sum(sum(e.cost) for e in self.evaluations)
        dense = sum(sum(e.dense_cost) for e in self.evaluations)
        return {
            "evaluations": number,
            "computed": levels["run"],
            "partial": sum(0 < share < 1 for e in self.evaluations for share in e.share),
            "reused": levels["reuse"],
            "held": number - levels["run"] - levels["reuse"],
            "flops": cost,
            "dense_flops": dense,
            "speedup_allowed": dense / cost if cost else None,
            "speedup_measured": self._by_the_clock(),
            "seconds": round(self.seconds, 4),
            "bytes": self.bytes,
        }

    def _by_the_clock(self) -> float | None:
        """About how many times faster the loop was than its own whole evaluations would have been;
        None where there are fewer than two beside the first, which warms up, or none was left
        out."""
        whole = sorted(e.seconds for e in self.evaluations[1:] if e.whole and e.seconds > 0)
        if len(whole) < 2 or all(e.whole for e in self.evaluations):
            return None
        return (
            round(whole[len(whole) // 2] * len(self.evaluations) / self.seconds, 3)
            if self.seconds
            else None
        )

    def as_json(self) -> dict:
        """The record in its one JSON form: plain dicts, lists, numbers and strings."""
        body = {k: v for k, v in asdict(self).items() if k != "evaluations"}
        evaluations = [asdict(e) for e in self.evaluations]
        return {
            "format": FORMAT,
            "version": VERSION,
            **body,
            "totals": self.totals,
            "evaluations": evaluations,
        }

    def text(self) -> str:
        """A few lines for people."""
        t = self.totals
        images = self.shape[0]
        per = "" if images == 1 else f" ({images} images)"
        lines = [
            f"RAPID: {self.sampler} on {self.family}, {self.status}, {self.seconds:.2f} s{per}",
            f"{t['computed']} of {t['evaluations']} evaluations computed, {t['reused']} reused, {t['held']} held",
        ]
        if t["partial"]:
            shares = [share for e in self.evaluations for share in e.share if 0 < share < 1]
            lines.append(
                f"{t['partial']} of the computed ones on {sum(shares) / len(shares):.0%} of the image tokens"
            )
        thin = [d for e in self.evaluations for d in e.density if d < 1]
        if thin:
            lines.append(
                f"{len(thin)} of the computed ones with attention at density {sum(thin) / len(thin):.2g}"
            )
        if t["speedup_allowed"]:
            clock = (
                f", by the clock about {t['speedup_measured']:.2f}x"
                if t["speedup_measured"]
                else ""
            )
            lines.append(
                f"allowed speed-up {t['speedup_allowed']:.2f}x{clock}, cache {self.bytes / 2**20:.1f} MiB"
            )
        measured = [m for e in self.evaluations for m in e.measured if m is not None]
        if measured:
            lines.append(
                f"forecast error where it was measured: mean {sum(measured) / len(measured):.3f}"
            )
        lines += [self._strip(i) for i in range(min(images, 8))]
        reasons = Counter(reason for e in self.evaluations for reason in e.reasons)
        lines += [
            f"computed densely {n} time{'s' * (n > 1)}: {reason}" for reason, n in reasons.items()
        ]
        return "\n".join([*lines, *self.notes])

    def _strip(self, image: int) -> str:
        marks = {"run": "#", "reuse": "r", "hold": "."}
        return "".join(
            "+" if 0 < e.share[image] < 1 else marks[e.levels[image]] for e in self.evaluations
        )


def side_by_side(records: Sequence[RunRecord], steps: int) -> RunRecord:
    """One record of images that were sampled one after another, each at noise levels of its own:
    `records` of one image each. At the levels of others an image is held; dense would have been
    `steps` evaluations of each that finished."""
    rows = []
    scale = [steps / max(1, len(r.evaluations)) if r.status == "finished" else 1.0 for r in records]
    for sigma in sorted({e.sigma for r in records for e in r.evaluations}, reverse=True):
        found = [next((e for e in r.evaluations if e.sigma == sigma), None) for r in records]
        rows.append(_row(len(rows), sigma, found, scale))
    last, notes = records[-1], tuple(dict.fromkeys(note for r in records for note in r.notes))
    due = sum(steps if r.status == "finished" else len(r.evaluations) for r in records)
    return replace(
        last,
        shape=(len(records), *last.shape[1:]),
        evaluations=tuple(rows),
        notes=notes,
        due=due,
        seconds=sum(r.seconds for r in records),
        bytes=max(r.bytes for r in records),
    )


def _row(
    index: int, sigma: float, found: Sequence[EvaluationRecord | None], scale: Sequence[float]
) -> EvaluationRecord:
    """What each image did at a noise level; None where it was not evaluated."""

    def column(name: str, absent: Any) -> tuple:
        return tuple(getattr(e, name)[0] if e else absent for e in found)

    some = [e for e in found if e]
    dense = tuple(cost * by for cost, by in zip(column("dense_cost", 0.0), scale, strict=True))
    thin = all(e.density for e in some)
    return EvaluationRecord(
        index,
        sigma,
        0,
        column("levels", "hold"),
        column("share", 0.0),
        column("cost", 0.0),
        dense,
        column("error", None),
        column("measured", None),
        tuple(dict.fromkeys(r for e in some for r in e.reasons)),
        density=column("density", 1.0) if thin else (),
        measures=column("measures", None) if thin else (),
        seconds=sum(e.seconds for e in some),
    )


def pack(tokens: Sequence[int], number: int) -> str:
    """Token numbers as a base64 bit set of `number` bits, lowest bit of the first byte first."""
    bits = bytearray(-(-number // 8))
    for token in tokens:
        bits[token // 8] |= 1 << token % 8
    return base64.b64encode(bits).decode("ascii")


def unpack(text: str) -> list[int]:
    """The numbers that `pack` put in."""
    return [
        8 * i + bit
        for i, byte in enumerate(base64.b64decode(text))
        for bit in range(8)
        if byte >> bit & 1
    ]


@dataclass
class RunLog:
    """The last finished runs of one patched model; the one thing that outlives a run."""

    records: deque[RunRecord] = field(default_factory=lambda: deque(maxlen=KEPT))

    def add(self, record: RunRecord) -> None:
        """Keep a finished record."""
        self.records.append(record)

    def find(self, fingerprint: str, other: bool = True) -> RunRecord | None:
        """The latest run that made this latent; else, where `other` ones may be meant, the latest
        of all; or None."""
        for record in reversed(self.records):
            if fingerprint and record.fingerprint == fingerprint:
                return record
        return self.records[-1] if self.records and other else None


def fingerprint(latent: Any) -> str:
    """Short hash of a latent, so that a report can tell which run made it; empty for anything but
    tensors. In half precision, in which the host may hand it on; latents of several parts (audio
    beside video) are packed as it does."""
    if getattr(latent, "is_nested", False) and hasattr(latent, "tensors"):
        latent = torch.cat([part.flatten(1) for part in latent.tensors], 1)
    if not isinstance(latent, Tensor):
        return ""
    return hashlib.blake2b(
        latent.detach().half().cpu().contiguous().numpy().tobytes(), digest_size=12
    ).hexdigest()
