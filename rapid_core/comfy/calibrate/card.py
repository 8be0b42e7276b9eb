"""What the file of a calibration says of itself, and the node of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...calibration.model_key import ModelKey
from ...calibration.plans import EFFORTS, Chosen
from ...calibration.search import key_of as marks_of
from ...engine.plan import HostFacts
from ...policy_file.format import PolicyFile
from ...policy_file.schedules import schedules_of
from ...quadrature.spacing import best_spaced
from .accepted import NAME
from .workflow import Workflow

SAME = "These are the steps that RAPID Accelerate finds without a file, too: this file changes nothing."


@dataclass(frozen=True)
class Calibrated:
    """What a calibration came to."""

    file: PolicyFile
    chosen: Sequence[Chosen]
    pictures: int
    """Seeds that were drawn."""
    cost: float
    """Of what was drawn, in full pictures."""
    budget: float


def metadata_of(
    workflow: Workflow, key: ModelKey, facts: HostFacts, effort: str, chosen: Sequence[Chosen]
) -> dict[str, Any]:
    """Metadata of the file."""
    architecture = facts.architecture
    assert architecture is not None
    reward = "costs of gaps that full pictures showed"
    if EFFORTS[effort].compares:
        reward += ", then PSNR of the latent to the full run"
    return {
        "architecture": architecture.family,
        "hidden": architecture.width(workflow.model.model.diffusion_model),
        "base_model": file_of(workflow.model) or key.family,
        "weights": key.weights,
        "patches": key.patches,
        "sampler": key.sampler,
        "guidance": key.guidance,
        "size": key.size,
        "budgets": [one.speedup for one in chosen],
        "reward": reward,
        "target": "the full run of the same seed",
        "measured_prompts": len(workflow.positives),
        "measured_pictures": [one.pictures for one in chosen],
        "measured_psnr": [_rounded(one.psnr) for one in chosen],
        "measured_psnr_default": [_rounded(one.psnr_default) for one in chosen],
        "training_command": f"{NAME}, effort {effort}, noise_seed {workflow.noise_seed}",
        "torch": torch.__version__,
        "licence": "unspecified",
    }


def _rounded(decibels: float | None) -> float | None:
    return None if decibels is None else round(decibels, 2)


def file_of(model: Any) -> str:
    """Name of the file that a model was loaded from; empty where the host does not tell."""
    loader = getattr(model, "cached_patcher_init", None)
    given = loader[1] if isinstance(loader, tuple) and len(loader) > 1 else ()
    path = given[0] if isinstance(given, tuple) and given else None
    return Path(path).name if isinstance(path, (str, Path)) else ""


def about(result: Calibrated) -> str:
    """A calibration in words: what each speed-up computes and what it is worth."""
    file = result.file
    said = file.metadata
    lines = [
        f"{file.name}: {file.base_model}, {said['sampler']}, {said['guidance']}",
        f"drawn: {result.pictures} seeds, as long as {result.cost:.1f} full pictures (of "
        f"{result.budget:g} at the most)",
    ]
    for one in result.chosen:
        own = "not measured" if one.psnr is None else f"{one.psnr:.1f} dB"
        line = f"{one.speedup:g}x: {sum(one.computed)} of {len(one.computed)} steps, {own}"
        if one.psnr_default is not None:
            line += f" ({one.psnr_default:.1f} dB without a policy)"
        lines.append(f"{line}  {marks_of(one.computed)}")
    plans = schedules_of(file)
    if all(plan.computed == best_spaced(sum(plan.computed), plan.sigmas) for plan in plans):
        lines.append(SAME)
    return "\n".join(lines)
