"""What was decided about the evaluations of a picture."""

from __future__ import annotations

from typing import Any, NamedTuple

from rapid_core.types import Mode


class Decision(NamedTuple):
    """Of one evaluation."""

    mode: str
    """The value of a `Mode`."""
    token_share: float = 1.0
    """Share of the image tokens that passed the blocks."""
    density: float = 1.0
    """Of attention."""
    measured_density: float | None = None
    """The density that was measured beside dense attention."""


def decisions(model: Any, image: int, computed: int) -> list[Decision]:
    """Decision of every evaluation of an image in the latest run of a patched model; `computed`
    full ones where no RAPID node patched it."""
    chain = model.model_options.get("transformer_options", {}).get("rapid")
    if chain is None:
        return [Decision(Mode.RUN.value)] * computed
    made = []
    for e in chain.log.records[-1].evaluations:
        attention = (e.density[image], e.measured_density[image]) if e.density else ()
        made.append(Decision(e.modes[image], e.token_share[image], *attention))
    return made
