"""What gaps cost on a model: of otherwise full runs with one gap each, how far they end from the
full one.

Costs of several gaps nearly add up (in mean squared error), so this table is all that has to be
measured to know the best steps for every number of them (`quadrature.spacing`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from ..quadrature.gap_costs import Gap, GapCosts

LONGEST = 5  # steps of a gap that are tried; longer ones follow from these


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
    unit. sigmas (N + 1,): of the runs, falling. Raises ValueError as `GapCosts.seen`."""
    return GapCosts.seen(tables, sigmas).on(sigmas)
