"""Policies out of files of any kind, and whether they fit a model."""

from __future__ import annotations

from typing import Any

from ..architectures import describe
from ..types import Policy
from .format import PolicyError, PolicyFile
from .gaps import gap_policy
from .heads import KIND, MAX_SIZE, heads_policy, structure_of
from .schedules import schedule_policy
from .thresholds import threshold_policy


def policy_of(file: PolicyFile, speedup: float) -> Policy:
    """The file's policy at a speed-up. Between the budgets it was made for, the nearest schedule is
    moved, thresholds are interpolated; to heads it is a ceiling, and what gaps cost serves any.
    Raises PolicyError."""
    if file.kind == "schedule":
        return schedule_policy(file, speedup)
    if file.kind == "threshold":
        return threshold_policy(file, speedup)
    if file.kind == "gaps":
        return gap_policy(file, speedup)
    return heads_policy(file, speedup)


def check_base(file: PolicyFile, base: Any) -> None:
    """Raise PolicyError where a policy was not made for the family or size of the host's model
    `base`."""
    network = base.diffusion_model
    architecture = describe(network)
    if architecture is None:
        check_family(file, type(network).__name__)
        return
    check_family(file, architecture.family)
    channels = getattr(getattr(base, "latent_format", None), "latent_channels", None)
    check_model(file, channels, architecture.width(network))


def check_family(file: PolicyFile, family: str) -> None:
    """Raise PolicyError for a policy of another model family."""
    if file.architecture != family:
        raise PolicyError(
            f"policy {file.name}: architecture = {file.architecture!r}, trained on "
            f"{file.base_model}; this model is {family}. Choose a policy of its family, or none."
        )


def check_model(file: PolicyFile, channels: int | None, hidden: int) -> None:
    """Raise PolicyError for a policy made for latents or a model of another size. Schedules and
    thresholds that do not say for which size are believed."""
    sizes: dict[str, int | None] = {"hidden": hidden}
    if file.kind == "heads" and structure_of(file) != KIND:
        sizes["channels"] = channels
    for field, size in sizes.items():
        if file.kind != "heads" and field not in file.metadata:
            continue
        trained = file.whole(field, 1, MAX_SIZE)
        if size is not None and trained != size:
            raise file.field_error(
                field,
                f"= {trained}, trained on {file.base_model}; this model has {size}. It is of "
                "another size: choose a policy made for this model, or none",
            )
