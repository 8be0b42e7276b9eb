"""What was decided about the evaluations of a picture."""

from __future__ import annotations

from typing import Any, NamedTuple

from rapid_core.reasons import text
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
    record = _latest(model)
    if record is None:
        return [Decision(Mode.RUN.value)] * computed
    made = []
    for e in record.evaluations:
        attention = (e.density[image], e.measured_density[image]) if e.density else ()
        made.append(Decision(e.modes[image], e.token_share[image], *attention))
    return made


def reasons(model: Any) -> list[str]:
    """What the record of the latest run says of it, and why something was computed that need not
    have been, each once; nothing where no RAPID node patched the model."""
    record = _latest(model)
    if record is None:
        return []
    said = [*record.notes, *(reason for e in record.evaluations for reason in e.reasons)]
    return list(dict.fromkeys(map(text, said)))


def closeness(model: Any, image: int) -> float | None:
    """PSNR in dB of an image of the latest run to the full picture, as the run predicts it; None
    where it does not."""
    predicted = getattr(_latest(model), "closeness", ())
    return predicted[image] if image < len(predicted) else None


def _latest(model: Any) -> Any:
    """The record of a patched model's latest run; None where there is none."""
    chain = model.model_options.get("transformer_options", {}).get("rapid")
    return None if chain is None else chain.log.records[-1]
