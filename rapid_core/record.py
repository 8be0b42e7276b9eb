"""What happened in a run: the `rapid-record`, its JSON form, and the log that keeps the last ones.

Version 2 of the JSON form has the words of docs/architecture.md; version 1 is read, too.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .reasons import from_json, text, to_json
from .types import Mode, Reason

FORMAT = "rapid-record"
VERSION = 2
REMEMBERED = 8  # finished records in a log
STRIP_MARKS = {Mode.RUN.value: "#", Mode.REUSE.value: "r", Mode.SKIP.value: "."}
STRIPS = 8  # images whose strip is in the text
VERDICTS = ((40.0, "good"), (32.0, "fair"))  # from so many dB to the full picture on; else "poor"

# Names of version 1 and what they are in version 2.
_OLD_EVALUATION = {
    "levels": "modes",
    "share": "token_share",
    "dense_cost": "full_cost",
    "error": "error_estimate",
    "measured": "measured_error",
    "measures": "measured_density",
}
_OLD_RUN = {"due": "full_evaluations"}
_OLD_MODES = {"hold": Mode.SKIP.value}


@dataclass(frozen=True)
class EvaluationRecord:
    """One evaluation; tuples have an entry an image."""

    index: int
    sigma: float
    """Sigma of the first image."""
    occurrence: int
    """n-th evaluation in a row at this sigma (heun and its like look twice)."""
    modes: tuple[str, ...]
    token_share: tuple[float, ...]
    """Share of the image tokens that passed the blocks."""
    cost: tuple[float, ...]
    """FLOPs that were spent."""
    full_cost: tuple[float, ...]
    """FLOPs of the same evaluation in full."""
    error_estimate: tuple[float | None, ...]
    """Relative L1 error of the prediction as estimated before the evaluation."""
    measured_error: tuple[float | None, ...]
    """The same as measured, where the evaluation was computed and could have been predicted."""
    reasons: tuple[Reason, ...] = ()
    """Why something was computed that need not have been."""
    tokens: tuple[str | None, ...] = ()
    """Bit sets (see `pack`) of the image tokens that ran, None for all or none; empty where nobody
    chose any."""
    density: tuple[float, ...] = ()
    """Share of the pairs of image tiles that attention looked at; empty where nobody chose one."""
    measured_density: tuple[float | None, ...] = ()
    """The density that was measured against dense attention, None where none was; empty as
    `density`."""
    seconds: float = 0.0
    """From the end of the evaluation before, or the loop's beginning; with the sampler's work."""
    step: int = 0
    """Place in the schedule of the first image."""
    sigmas: tuple[float, ...] = ()
    """Each image's sigma, where they differ; else empty."""

    @property
    def sparse(self) -> bool:
        """Whether any attention was sparse, or measured against dense attention."""
        measured = any(density is not None for density in self.measured_density)
        return measured or any(density < 1 for density in self.density)

    @property
    def full(self) -> bool:
        """Whether everything was computed, and nothing measured beside it."""
        ran = all(mode == Mode.RUN.value for mode in self.modes)
        return ran and all(share == 1 for share in self.token_share) and not self.sparse


@dataclass(frozen=True)
class RunRecord:
    """One sampling run."""

    sampler: str
    family: str
    shape: tuple[int, ...]
    """Of the batch of latents."""
    sigmas: tuple[float, ...]
    """Of the schedule."""
    policies: tuple[dict[str, Any], ...]
    evaluations: tuple[EvaluationRecord, ...]
    seconds: float
    """Of the sampling loop."""
    bytes: int
    """Most memory that the pack held at a time."""
    status: str = "finished"
    """finished, interrupted or failed."""
    notes: tuple[Reason, ...] = ()
    fingerprint: str = ""
    """Of the latent that came out, so that a report finds its run."""
    grid: tuple[int, int, int] | None = None
    """Frames, rows and columns of image tokens, where policies chose any."""
    full_evaluations: int | None = None
    """Evaluations of the full run over all images, where a sampler made another number."""
    closeness: tuple[float | None, ...] = ()
    """Predicted PSNR (dB) of each image to the full picture, None where nothing is known; empty
    where nobody predicts it."""

    @property
    def totals(self) -> dict[str, Any]:
        """Sums over evaluations and images; what is not known is None. `seconds_full`: about what
        the full run would have taken. `closeness`: mean over images; `verdict`: of the worst."""
        modes = Counter(mode for e in self.evaluations for mode in e.modes)
        made = sum(modes.values())
        number = made if self.full_evaluations is None else self.full_evaluations
        cost = sum(sum(e.cost) for e in self.evaluations)
        full_cost = sum(sum(e.full_cost) for e in self.evaluations)
        computed, reused = modes[Mode.RUN.value], modes[Mode.REUSE.value]
        seconds_full = self._seconds_full()
        known = [closeness for closeness in self.closeness if closeness is not None]
        return {
            "evaluations": number,
            "computed": computed,
            "partial": sum(0 < share < 1 for e in self.evaluations for share in e.token_share),
            "reused": reused,
            "skipped": number - computed - reused,
            "flops": cost,
            "full_flops": full_cost,
            "speedup_theoretical": full_cost / cost if cost else None,
            "speedup_measured": seconds_full and round(seconds_full / self.seconds, 3),
            "seconds": round(self.seconds, 4),
            "seconds_full": seconds_full and round(seconds_full, 4),
            "bytes": self.bytes,
            "closeness": round(_mean(known), 1) if known else None,
            "closeness_worst": round(min(known), 1) if known else None,
            "verdict": verdict(min(known)) if known else None,
        }

    def _seconds_full(self) -> float | None:
        """About what the loop would have taken by its own full evaluations; None where there are
        fewer than two beside the first, which warms up, or all were full."""
        full = sorted(e.seconds for e in self.evaluations[1:] if e.full and e.seconds > 0)
        if len(full) < 2 or not self.seconds or all(e.full for e in self.evaluations):
            return None
        return full[len(full) // 2] * len(self.evaluations)

    def to_json(self) -> dict[str, Any]:
        """The record in its one JSON form: plain dicts, lists, numbers and strings."""
        body = {name: value for name, value in vars(self).items() if name != "evaluations"}
        return {
            "format": FORMAT,
            "version": VERSION,
            **body,
            "notes": [to_json(note) for note in self.notes],
            "totals": self.totals,
            "evaluations": [
                {**vars(e), "reasons": [to_json(reason) for reason in e.reasons]}
                for e in self.evaluations
            ],
        }

    def text(self) -> str:
        """A few lines for people."""
        totals, images = self.totals, self.shape[0]
        saved = totals["seconds_full"]
        head = f"RAPID: {shown_seconds(self.seconds)}"
        head += "" if saved is None else f" instead of about {shown_seconds(saved)}"
        if totals["speedup_theoretical"]:
            head += f", theoretical speed-up {totals['speedup_theoretical']:.2f}x"
        lines = [head]
        if totals["verdict"]:
            worst = totals["closeness_worst"]
            several = sum(closeness is not None for closeness in self.closeness) > 1
            own = f" in the mean, {worst:.0f} dB at worst" if several else ""
            lines.append(
                f"predicted closeness {totals['closeness']:.0f} dB{own}: {totals['verdict']}"
            )
        counts = [f"{totals['computed']} of {totals['evaluations']} evaluations computed"]
        if totals["partial"]:
            shares = [s for e in self.evaluations for s in e.token_share if 0 < s < 1]
            some = f"{_mean(shares):.0%} of the image tokens"
            counts.append(f"{totals['partial']} of them on {some}")
        counts += [f"{totals[name]} {name}" for name in ("reused", "skipped") if totals[name]]
        lines.append(", ".join(counts))
        sparse = [d for e in self.evaluations for d in e.density if d < 1]
        if sparse:
            lines.append(
                f"{len(sparse)} of the computed ones with attention at density {_mean(sparse):.2g}"
            )
        of = [f"{images} images"] if images > 1 else []
        cache = f"cache {self.bytes / 2**20:.1f} MiB"
        lines.append(", ".join([f"{self.sampler} on {self.family}", *of, self.status, cache]))
        errors = self._measured_errors()
        if errors:
            lines.append(f"prediction error where it was measured: mean {_mean(errors):.3f}")
        lines += [self.strip(image) for image in range(min(images, STRIPS))]
        reasons = Counter(reason for e in self.evaluations for reason in e.reasons)
        lines += [
            f"computed in full {n} time{'s' * (n > 1)}: {text(reason)}"
            for reason, n in reasons.items()
        ]
        return "\n".join([*lines, *map(text, self.notes)])

    def _measured_errors(self) -> list[float]:
        """How far predictions were off where that was measured. It is measured for a straight line,
        so it says nothing of a run that only a schedule decides, which predicts otherwise, and of
        one that predicted nothing."""
        totals = self.totals
        predicted = any(totals[name] for name in ("reused", "skipped", "partial"))
        if not predicted or all(p.get("technique") == "schedule" for p in self.policies):
            return []
        return [m for e in self.evaluations for m in e.measured_error if m is not None]

    def strip(self, image: int) -> str:
        """One character an evaluation: # computed, + on some tokens, r reused, . skipped."""
        return "".join(
            "+" if 0 < e.token_share[image] < 1 else STRIP_MARKS[e.modes[image]]
            for e in self.evaluations
        )


def read(found: dict[str, Any]) -> RunRecord:
    """A record out of its JSON form, of this version or an older one. Raises ValueError for
    anything else."""
    version = found.get("version")
    if found.get("format") != FORMAT or version not in range(1, VERSION + 1):
        raise ValueError(
            f"a record of format {found.get('format')!r}, version {version!r} was given; accepted is "
            f"{FORMAT!r} up to version {VERSION}. Update RAPID to read newer ones."
        )
    run = {_OLD_RUN.get(name, name): value for name, value in found.items()}
    run = {name: run[name] for name in RunRecord.__dataclass_fields__ if name in run}
    return RunRecord(
        **{
            **run,
            "shape": tuple(run["shape"]),
            "sigmas": tuple(run["sigmas"]),
            "policies": tuple(run["policies"]),
            "notes": tuple(map(from_json, run.get("notes", ()))),
            "grid": None if run.get("grid") is None else tuple(run["grid"]),
            "closeness": tuple(run.get("closeness", ())),
            "evaluations": tuple(map(_evaluation, run["evaluations"])),
        }
    )


def _evaluation(found: dict[str, Any]) -> EvaluationRecord:
    given = {_OLD_EVALUATION.get(name, name): value for name, value in found.items()}
    given = {name: given[name] for name in EvaluationRecord.__dataclass_fields__ if name in given}
    given = {name: tuple(v) if isinstance(v, list | tuple) else v for name, v in given.items()}
    given["modes"] = tuple(_OLD_MODES.get(mode, mode) for mode in given["modes"])
    given["reasons"] = tuple(map(from_json, given.get("reasons", ())))
    return EvaluationRecord(**given)


def verdict(closeness: float) -> str:
    """A predicted closeness (dB to the full picture) in a word."""
    return next((word for least, word in VERDICTS if closeness >= least), "poor")


def shown_seconds(seconds: float) -> str:
    """Seconds as people read them: two digits, or whole ones."""
    return f"{seconds:#.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"


def two_digits(seconds: float) -> float:
    """Seconds as `shown_seconds` has them, as a number."""
    return float(f"{seconds:.2g}") if seconds < 9.95 else float(round(seconds))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def pack(tokens: Sequence[int], number: int) -> str:
    """Token numbers as a base64 bit set of `number` bits, lowest bit of the first byte first."""
    flags = np.zeros(number, dtype=bool)
    flags[list(tokens)] = True
    return base64.b64encode(np.packbits(flags, bitorder="little").tobytes()).decode("ascii")


def unpack(packed: str) -> list[int]:
    """The numbers that `pack` put in."""
    given = np.frombuffer(base64.b64decode(packed), dtype=np.uint8)
    return np.flatnonzero(np.unpackbits(given, bitorder="little")).tolist()


@dataclass
class RunLog:
    """The last finished runs of one patched model; the one thing that outlives a run."""

    records: deque[RunRecord] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def add(self, record: RunRecord) -> None:
        """Keep a finished record."""
        self.records.append(record)

    def find(self, fingerprint: str) -> RunRecord | None:
        """The latest run that made this latent, and no other."""
        for record in reversed(self.records):
            if fingerprint and record.fingerprint == fingerprint:
                return record
        return None

    def failure(self) -> Reason | None:
        """What went wrong in the latest run, where it came to its end and nobody knows what it
        made."""
        latest = self.records[-1] if self.records else None
        if latest is None or latest.fingerprint or latest.status != "finished":
            return None
        return latest.notes[-1] if latest.notes else None


def fingerprint(latent: Any) -> str:
    """Short hash of a latent, so that a report can tell which run made it; empty for anything but
    tensors. In half precision, in which the host may hand it on; latents of several parts (audio
    beside video) are packed as it does."""
    if getattr(latent, "is_nested", False) and hasattr(latent, "tensors"):
        latent = torch.cat([part.flatten(1) for part in latent.tensors], 1)
    if not isinstance(latent, Tensor):
        return ""
    data = latent.detach().half().cpu().contiguous().numpy().tobytes()
    return hashlib.blake2b(data, digest_size=12).hexdigest()
