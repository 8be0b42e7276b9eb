"""The policy file that was made for a model, found by the fingerprint of the model's weights."""

import logging
from typing import Any

import folder_paths

from ..rapid_core.comfy.learning import FOLDER
from ..rapid_core.comfy.model_key import weights_of
from ..rapid_core.policy_file.format import read
from ..rapid_core.policy_file.headers import Header, Headers
from ..rapid_core.policy_file.policies import check_base, policy_of
from ..rapid_core.reasons import ReasonCode
from ..rapid_core.types import Policy, Reason
from .load_policy import names

HEADERS = Headers()


def found_policy(model: Any, speedup: float) -> tuple[Policy | None, list[Reason]]:
    """The policy of the newest file that was made for this very model and speed-ups as low, None
    without one, and what the report says: which file it is, and which others cannot be used.
    Raises nothing."""
    policy, said = None, []
    try:
        headers = _headers()
        weights = weights_of(model) if headers else None
        for path in (header.path for header in headers if header.weights == weights):
            try:
                file = read(path)
                check_base(file, model.model)
                if speedup < file.budgets[0]:
                    continue  # it would compute as little as it does there
                policy = policy_of(file, speedup)
            except Exception as error:
                HEADERS.damaged(path, error)
                continue
            said = [Reason(ReasonCode.POLICY_FOUND, file=file.name)]
            break
    except Exception:
        logging.exception("RAPID: policy files could not be looked for")
    return policy, [*said, *HEADERS.notes()]


def stamp() -> tuple[tuple[str, int, int], ...]:
    """Another one when a file that may be found was added, changed or removed."""
    return tuple((str(header.path), *header.stamp) for header in _headers())


def _headers() -> list[Header]:
    """Those of all files that say for which weights they were made, the newest first."""
    found = (folder_paths.get_full_path(FOLDER, name) for name in names())
    return HEADERS.marked(path for path in found if path)
