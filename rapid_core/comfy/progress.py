"""What a node says of itself while a run goes on: one line of text on it in the graph."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ..record import EvaluationRecord
from ..types import Mode


def running_server() -> Any:
    """The host's server, where this process is one; None in scripts, which its import would
    change."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def tell(node: str, evaluations: Sequence[EvaluationRecord], sigmas: Sequence[float]) -> None:
    """Show on a node, by its execution id, how its run goes on; see `so_far` and `say`."""
    say(node, lambda: so_far(evaluations, sigmas))


def say(node: str, line: Callable[[], str]) -> None:
    """Show a line on a node, by its execution id, where a browser runs this workflow. Other clients
    would take the binary message for a preview; they announce no features."""
    server = running_server()
    sockets = getattr(server, "sockets_metadata", {})
    features = sockets.get(getattr(server, "client_id", None), {}).get("feature_flags")
    if node and features:
        try:
            server.send_progress_text(line(), node, server.client_id)
        except Exception as error:  # a line on a node is not worth a run
            logging.warning("RAPID: no progress is shown on the node (%s)", error)


def so_far(evaluations: Sequence[EvaluationRecord], sigmas: Sequence[float]) -> str:
    """A line about a run that has made these evaluations of a schedule. Of a batch, numbers are
    means over images."""
    last = evaluations[-1]
    steps = len(sigmas) - 1
    step = min(steps, last.step + 1)  # by its sigma it may be another: samplers may tell others
    images = len(last.modes)
    skipped = sum(mode != Mode.RUN.value for e in evaluations for mode in e.modes) / images
    partial = sum(0 < share < 1 for e in evaluations for share in e.token_share) / images
    cost = sum(sum(e.cost) for e in evaluations)
    full_cost = sum(sum(e.full_cost) for e in evaluations)
    parts = [f"{step}/{steps}"]
    if skipped or not partial:
        parts.append(f"{skipped:.3g} skipped")
    if partial:
        parts.append(f"{partial:.3g} in part")
    if cost:
        parts.append(f"{full_cost / cost:.1f}x")
    return " · ".join(parts)  # short: the page shows a line of it on a node of usual width
