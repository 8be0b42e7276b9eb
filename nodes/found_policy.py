"""The policy file that was made for a model, found by the fingerprint of the model's weights."""

import logging
from dataclasses import replace
from typing import Any

import folder_paths

from ..rapid_core.comfy.learning import FOLDER
from ..rapid_core.comfy.model_key import weights_of
from ..rapid_core.policy_file.format import read
from ..rapid_core.policy_file.headers import Header, Headers
from ..rapid_core.policy_file.policies import check_base, policy_of
from ..rapid_core.reasons import ReasonCode
from ..rapid_core.techniques.step_skip.schedule import SchedulePolicy
from ..rapid_core.types import Policy, Reason
from .load_policy import names

HEADERS = Headers()


def found_policy(model: Any, speedup: float) -> tuple[Policy | None, list[Reason]]:
    """The policy of the newest file that was made for this very model and speed-ups as low, None
    without one, and what the report says: which file it is, and which others cannot be used. Of a
    schedule the run says which file it went by, since that of an older file may fit its sigmas better.
    Raises nothing."""
    found: list[Policy] = []
    said = []
    try:
        headers = _headers()
        weights = weights_of(model) if headers else None
        for path in (header.path for header in headers if header.weights == weights):
            try:
                file = read(path)
                check_base(file, model.model)
                if speedup < file.budgets[0]:
                    continue  # it would compute as little as it does there
                found.append(policy_of(file, speedup))
            except Exception as error:
                HEADERS.damaged(path, error)
                continue
            if not isinstance(found[0], SchedulePolicy):
                said = [Reason(ReasonCode.POLICY_FOUND, file=file.name)]
                break
    except Exception:
        logging.exception("RAPID: policy files could not be looked for")
    return _one_of(found), [*said, *HEADERS.notes()]


def _one_of(found: list[Policy]) -> Policy | None:
    """The first, if any; a schedule knows those of the others that are predicted by as it is."""
    first = found[0] if found else None
    if not isinstance(first, SchedulePolicy):
        return first
    alike = [
        (policy.schedule, policy.source)
        for policy in found[1:]
        if isinstance(policy, SchedulePolicy)
        and policy.schedule is not None
        and policy.fitted == first.fitted
    ]
    return replace(first, found=True, others=tuple(alike))


def stamp() -> tuple[tuple[str, int, int], ...]:
    """Another one when a file that may be found was added, changed or removed."""
    return tuple((str(header.path), *header.stamp) for header in _headers())


def _headers() -> list[Header]:
    """Those of all files that say for which weights they were made, the newest first."""
    found = (folder_paths.get_full_path(FOLDER, name) for name in names())
    return HEADERS.marked(path for path in found if path)
