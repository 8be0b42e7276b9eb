"""A run's computed steps as a schedule file, so that other runs compute the same ones.

Such a file does not name the weights it was made for, so `policy_file` = auto does not find it: the steps
of one run are what somebody liked, and nobody measured that they suit the model best. Who wants them
chooses the file by its name."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..architectures import FAMILIES
from ..reasons import ReasonCode, text
from ..record import FORMAT, VERSION
from ..techniques.step_skip.schedule import Schedule
from ..types import Mode, Reason
from .format import MAX_BUDGET, MAX_SPEEDUP, PolicyError, PolicyFile, read_metadata, write
from .names import SUFFIX, plain_name
from .schedules import MAX_STEPS, schedule_tensors

COMMAND = "RAPID Report, saved timeline"
UNVERIFIED = " (unverified)"


class NotSaved(ValueError):
    """Why a timeline is not saved."""

    def __init__(self, reason: Reason):
        super().__init__(text(reason))
        self.reason = reason


def save(folder: Path, name: str, record: Any, replace: bool = False) -> tuple[PolicyFile, float]:
    """Write the schedule of a record in its JSON form (version 2) into a folder, under a name without
    a suffix. replace: also over a file that was saved in this way. The file, and the highest speed-up
    at which RAPID Accelerate computes as much. Raises NotSaved, or OSError where nothing can be
    written."""
    schedule, architecture = schedule_of(record)
    path = folder / f"{checked_name(name)}{SUFFIX}"
    if path.exists():
        ours = is_saved(path)
        if not (replace and ours):
            code = ReasonCode.SAVE_EXISTS if ours else ReasonCode.SAVE_TAKEN
            raise NotSaved(Reason(code, file=path.name))
    speedup = len(schedule.computed) / sum(schedule.computed)
    metadata = {
        "architecture": architecture,
        "base_model": "the model of one run",
        "sampler": str(record.get("sampler", "")),
        "budgets": [min(speedup, float(MAX_BUDGET))],
        "reward": "none: the steps that one run computed",
        "training_command": COMMAND,
        "licence": "unspecified",
    }
    file = write(path, "schedule", metadata, schedule_tensors([schedule]))
    return file, min(math.floor(10 * speedup) / 10, MAX_SPEEDUP)


def checked_name(name: Any) -> str:
    """A name for a file, without its suffix. Raises NotSaved for what is none."""
    plain = plain_name(name) if isinstance(name, str) else None
    if plain is None:
        raise NotSaved(Reason(ReasonCode.SAVE_NAME, name=str(name)[:80]))
    return plain


def is_saved(path: Path) -> bool:
    """Whether a file was saved in this way."""
    try:
        return read_metadata(path).get("training_command") == COMMAND
    except PolicyError:
        return False


def schedule_of(record: Any) -> tuple[Schedule, str]:
    """The steps that a run computed, and its model's family. Raises NotSaved where they are no
    schedule."""
    if not isinstance(record, Mapping) or record.get("format") != FORMAT:
        raise NotSaved(Reason(ReasonCode.SAVE_NO_RECORD))
    if record.get("version") != VERSION:
        version = str(record.get("version"))[:20]
        raise NotSaved(Reason(ReasonCode.SAVE_VERSION, version=version, accepted=VERSION))
    try:
        return _schedule_of(record)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, NotSaved):
            raise
        raise NotSaved(Reason(ReasonCode.SAVE_NO_RECORD)) from error


def _schedule_of(record: Mapping[str, Any]) -> tuple[Schedule, str]:
    if record["status"] != "finished":
        raise NotSaved(Reason(ReasonCode.SAVE_UNFINISHED))
    family = str(record["family"]).removesuffix(UNVERIFIED)
    if family not in FAMILIES:
        raise NotSaved(Reason(ReasonCode.SAVE_FAMILY, family=family))
    evaluations = record["evaluations"]
    if any(0 < share < 1 for e in evaluations for share in e["token_share"]):
        raise NotSaved(Reason(ReasonCode.SAVE_REGIONS))
    modes = {mode for e in evaluations for mode in e["modes"]}
    sparse = any(density < 1 for e in evaluations for density in e["density"])
    if sparse or not modes <= {Mode.RUN.value, Mode.SKIP.value}:
        raise NotSaved(Reason(ReasonCode.SAVE_OTHER))
    if any(len(set(e["modes"])) > 1 or e.get("sigmas") for e in evaluations):
        raise NotSaved(Reason(ReasonCode.SAVE_IMAGES_DIFFER))
    sigmas = tuple(float(sigma) for sigma in record["sigmas"])
    falling = all(a > b for a, b in itertools.pairwise(sigmas))
    if not (2 < len(sigmas) <= MAX_STEPS + 1 and falling and sigmas[-1] >= 0):
        raise NotSaved(Reason(ReasonCode.SAVE_SIGMAS))
    computed = _computed(evaluations, len(sigmas) - 1)
    if record.get("full_evaluations") is not None or computed is None or not computed[0]:
        raise NotSaved(Reason(ReasonCode.SAVE_STEPS))
    if all(computed):
        raise NotSaved(Reason(ReasonCode.SAVE_FULL))
    return Schedule(computed, sigmas), family


def _computed(evaluations: Sequence[Mapping[str, Any]], steps: int) -> tuple[bool, ...] | None:
    """Which steps were computed; None where a step was not looked at, or only half of it computed
    (samplers may look twice)."""
    seen: dict[int, set[str]] = {}
    for e in evaluations:
        seen.setdefault(int(e["step"]), set()).add(e["modes"][0])
    if seen.keys() != set(range(steps)) or any(len(modes) > 1 for modes in seen.values()):
        return None
    return tuple(seen[step] == {Mode.RUN.value} for step in range(steps))
