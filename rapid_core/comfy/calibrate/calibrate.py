"""Calibrates a workflow: draws its pictures as SamplerCustom does, finds the best plans
(`calibration.plans`), and writes them into a policy file."""

from __future__ import annotations

import logging
from pathlib import Path

import folder_paths
from safetensors import SafetensorError

from ...calibration.plans import EFFORTS, Calibration, Chosen, Figures
from ...calibration.state import State
from ...policy_file.format import PolicyError, read, write
from ...policy_file.names import SUFFIX
from ...policy_file.schedules import schedule_tensors, schedules_of
from ...techniques.step_skip.schedule import Schedule
from ..learning import FOLDER
from .accepted import NAME, check, check_file, checked_name
from .card import Calibrated, metadata_of
from .drawer import Drawer
from .progress import Progress
from .workflow import Workflow, inputs_of


def calibrate(workflow: Workflow, name: str, effort: str, node: str = "") -> Calibrated:
    """Calibrate a workflow and write the file. effort: one of EFFORTS; node: execution id of the node
    that shows how it goes on. Raises ValueError, in the node's words, for what cannot be calibrated
    or written, and what the host raises on Cancel; what was drawn by then is kept."""
    folder = Path(folder_paths.models_dir) / FOLDER
    path = folder / f"{checked_name(name)}{SUFFIX}"
    key, facts = check(workflow)
    check_file(path, key)
    inputs = inputs_of(workflow, key)
    before = finished(path, inputs, effort)
    if before is not None:
        return before
    steps = len(key.sigmas) - 1
    state = State(folder, path.stem, inputs, steps)
    figures, latents = state.read()
    try:
        state.check()  # now, and not after the first picture
    except OSError as error:
        raise ValueError(f"{NAME}: nothing can be written into {folder} ({error}).") from error
    progress = Progress(workflow.model, node, EFFORTS[effort].budget, steps)
    pictures = Drawer(workflow, facts, state, latents, progress)

    def kept() -> None:
        keep(state, figures)
        progress.tell()

    prompts = len(workflow.positives)
    calibration = Calibration(key.sigmas, EFFORTS[effort], pictures, figures, kept, prompts)
    progress.spent = lambda: calibration.spent
    chosen = calibration.run()
    progress.end()
    numbers = len(calibration.numbers)
    result = {"inputs": inputs, "effort": effort, "seeds": numbers, "cost": calibration.spent}
    metadata = metadata_of(workflow, key, facts, effort, chosen) | result
    schedules = [Schedule(one.computed, key.sigmas) for one in chosen]
    try:
        file = write(path, "schedule", metadata, schedule_tensors(schedules))
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{NAME}: {path} cannot be written ({error}). All that was drawn is kept beside it as far "
            "as there was room: make room and queue again, and only the file is written."
        ) from error
    if not calibration.left_over:  # by a longer one that was interrupted, and may go on yet
        forget(state)
    return Calibrated(file, chosen, numbers, calibration.spent, EFFORTS[effort].budget)


def finished(path: Path, inputs: str, effort: str) -> Calibrated | None:
    """What the same inputs came to before, as the file has it; None where there is no such file. So a
    host that was started anew draws nothing again."""
    try:
        file = read(path)
        said = file.metadata
        if (said.get("inputs"), said.get("effort")) != (inputs, effort):
            return None
        measured = (file.json(f"measured_{name}") for name in ("psnr", "psnr_default", "pictures"))
        rows = zip(file.budgets, schedules_of(file), *measured, strict=True)
        chosen = [Chosen(speedup, plan.computed, *row) for speedup, plan, *row in rows]
        return Calibrated(
            file, chosen, file.json("seeds"), file.json("cost"), EFFORTS[effort].budget
        )
    except (PolicyError, ValueError):
        return None


def keep(state: State, figures: Figures) -> None:
    """Write figures; where that fails, the calibration goes on without."""
    try:
        state.write(figures)
    except OSError as error:
        logging.warning("RAPID: what was calibrated so far could not be kept (%s)", error)


def forget(state: State) -> None:
    """Remove a state that nobody needs any more."""
    try:
        state.remove()
    except OSError as error:
        logging.warning("RAPID: the state of a calibration could not be removed (%s)", error)
