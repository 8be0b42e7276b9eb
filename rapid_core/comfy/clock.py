"""How long a sampler took that no RAPID node had a part in: by the progress that the host tells of
every node."""

from __future__ import annotations

import time
from typing import Any

from comfy_execution.progress import ProgressHandler, add_progress_handler, get_progress_state

NAME = "rapid_clock"


class Clock(ProgressHandler):
    """Remembers when the first and the last step of each node came, for one workflow's run."""

    def __init__(self) -> None:
        super().__init__(NAME)
        self.first: dict[str, tuple[float, float]] = {}
        self.last: dict[str, tuple[float, float, float]] = {}

    def update_handler(
        self, node_id: str, value: float, max_value: float, *_: Any, **__: Any
    ) -> None:
        """Called by the host in the thread that runs the node."""
        now = time.perf_counter()
        before = self.last.get(node_id)
        if before is None or value < before[0]:  # another loop of the same node begins
            self.first[node_id] = (value, now)
        self.last[node_id] = (value, max_value, now)

    def time_of(self, node_id: str) -> tuple[float, int] | None:
        """About the seconds of a node's loop and its steps: the first one, which loads and warms up, is
        counted as the others. None where it did not come to its end, or had one step."""
        if node_id not in self.last:
            return None
        (begin, began), (value, most, ended) = self.first[node_id], self.last[node_id]
        if value != most or value - begin < 1:
            return None
        return (ended - began) / (value - begin) * most, int(most)


def start() -> None:
    """Time the nodes of the workflow that runs, from now on."""
    if NAME not in get_progress_state().handlers:
        add_progress_handler(Clock())


def time_of(node_id: str) -> tuple[float, int] | None:
    """About the seconds of a node's loop in the workflow that runs, and its steps; None where it has
    none, or nobody started the clock before it ran."""
    clock = get_progress_state().handlers.get(NAME)
    return clock.time_of(node_id) if isinstance(clock, Clock) else None
