"""What gaps cost on a model: of otherwise full runs with one gap each, how far they end from the
full one.

Costs of several gaps nearly add up (in mean squared error), so this table is all that has to be
measured to know the best steps for every number of them (`quadrature.spacing`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean

from torch import Tensor

from ..quadrature.spacing import Spacing

Gap = tuple[int, int]
"""The computed steps that a gap lies between."""

LONGEST = 5  # steps of a gap that are measured; longer ones follow from these
NEIGHBOURS = 2  # places to either side that a cost is smoothed over
# How much of what is measured beside the formula is taken, as an exponent. Pictures differ by a factor
# of 3 at the same gap, so that the table of a few says only so much about the next ones: on unseen
# pictures of both demo models a half was better than the whole, and than none (docs/lab.md).
MEASURED = 0.5
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


def costs_of(tables: Iterable[Mapping[Gap, float]], sigmas: Sequence[float]) -> dict[Gap, float]:
    """What gaps cost on a model, out of the tables of single pictures (`latent_error` by gap); in no
    unit. sigmas (N + 1,): of the runs, falling. Halfway between the formula (`quadrature.spacing`)
    and what was measured, see `MEASURED`. Raises ValueError where an error is not finite, or the
    tables have different gaps."""
    tables = list(tables)
    if any(table.keys() != tables[0].keys() for table in tables):
        raise ValueError("tables of costs have different gaps")
    if not all(math.isfinite(cost) for table in tables for cost in table.values()):
        raise ValueError("the model gives numbers that are not finite where steps are skipped")
    spacing = Spacing(sigmas)
    formula = {gap: spacing.cost(*gap) for gap in (tables[0] if tables else ())}
    # In the geometric mean, since one picture may be a hundred times another.
    logs = {
        gap: mean(math.log(table[gap] + NOTHING) for table in tables) - math.log(cost)
        for gap, cost in formula.items()
    }
    return {gap: cost * math.exp(MEASURED * _smoothed(logs, gap)) for gap, cost in formula.items()}


def _smoothed(logs: Mapping[Gap, float], gap: Gap) -> float:
    """The mean over gaps as long at places nearby, weighed by how near they are."""
    before, after = gap
    places = range(-NEIGHBOURS, NEIGHBOURS + 1)
    near = {by: logs[before + by, after + by] for by in places if (before + by, after + by) in logs}
    weights = {by: 1 / (1 + abs(by)) for by in near}
    return sum(weights[by] * near[by] for by in near) / sum(weights.values())
