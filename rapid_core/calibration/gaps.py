"""What gaps cost on a model: of otherwise full runs with one gap each, how far they end from the
full one.

Costs of several gaps nearly add up (in mean squared error), so this table is all that has to be
measured to know the best steps for every number of them (`quadrature.spacing`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import mean

from torch import Tensor

Gap = tuple[int, int]
"""The computed steps that a gap lies between."""

LONGEST = 5  # steps of a gap that are measured; longer ones follow from these
NEIGHBOURS = 2  # places to either side that a cost is smoothed over
# Of the latent's mean square: below it, errors are not told from rounding, and their logarithm would
# count for more than they do.
NOTHING = 1e-9


def gaps_of(steps: int, longest: int = LONGEST) -> list[Gap]:
    """All gaps of up to so many steps in a run. The last step is always computed: what follows it is
    the picture, and nothing would correct a gap there."""
    return [
        (step, step + length + 1)
        for step in range(steps - 2)
        for length in range(1, min(longest, steps - 2 - step) + 1)
    ]


def with_gap(gap: Gap, steps: int) -> tuple[bool, ...]:
    """Which steps of a run are computed that has this one gap."""
    before, after = gap
    return tuple(not before < i < after for i in range(steps))


def latent_error(latents: Tensor, reference: Tensor) -> float:
    """Mean squared error of latents, as a share of the reference's mean square."""
    reference = reference.float()
    error = (latents.float() - reference).square().mean() / reference.square().mean()
    return float(error)


def mean_costs(tables: Iterable[Mapping[Gap, float]]) -> dict[Gap, float]:
    """The table of a model out of those of single pictures (`latent_error` by gap): geometric means,
    since one picture's may be a hundred times another's, smoothed over neighbouring places. Gaps that
    end at the last step stand alone, since that one is unlike the others. Raises ValueError where an
    error is not finite, or the tables have different gaps."""
    tables = list(tables)
    if any(table.keys() != tables[0].keys() for table in tables):
        raise ValueError("tables of costs have different gaps")
    if not all(math.isfinite(cost) for table in tables for cost in table.values()):
        raise ValueError("the model gives numbers that are not finite where steps are skipped")
    logs = {gap: mean(math.log(table[gap] + NOTHING) for table in tables) for gap in tables[0]}
    last = max(after for _, after in logs)
    return {gap: math.exp(_smoothed(logs, gap, last)) for gap in logs}


def _smoothed(logs: Mapping[Gap, float], gap: Gap, last: int) -> float:
    """The mean over the same gap at places nearby, weighed by how near they are."""
    before, after = gap
    if after == last:
        return logs[gap]
    weights = {
        (before + by, after + by): 1 / (1 + abs(by)) for by in range(-NEIGHBOURS, NEIGHBOURS + 1)
    }
    near = {at: w for at, w in weights.items() if at in logs and at[1] != last}
    return sum(w * logs[at] for at, w in near.items()) / sum(near.values())
