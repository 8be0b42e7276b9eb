"""Calibrates a workflow: draws its pictures as SamplerCustom does, finds the best plans
(`calibration.plans`), and writes them into a policy file."""

from __future__ import annotations

import hashlib
import inspect
import logging
import numbers
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.utils
import folder_paths
import latent_preview
import torch
from comfy.samplers import CFGGuider
from safetensors import SafetensorError
from torch import Tensor

from ..architectures import describe
from ..calibration.model_key import ModelKey
from ..calibration.plans import EFFORTS, Calibration, Chosen, Figures, Plan, Table
from ..calibration.search import key_of as marks_of
from ..calibration.search import latent_psnr
from ..calibration.state import State
from ..engine.plan import FEW_STEPS, HostFacts, unsafe
from ..engine.run import Run
from ..policy_file.format import PolicyError, PolicyFile, read, write
from ..policy_file.schedules import schedule_tensors, schedules_of
from ..reasons import text
from ..record import RunRecord
from ..techniques.step_skip.schedule import Schedule, SchedulePolicy
from ..types import Mode, Policy, Reason, SamplerKind
from .chain import KEY, attach, chain_of, check_channels
from .facts import host_facts
from .learning import FOLDER
from .model_key import key_of
from .progress import say

NAME = "RAPID Calibrate"
ENDING = ".safetensors"
ACCEPTED = (
    f"What can be calibrated: runs of {FEW_STEPS + 1} steps and more on sigmas that fall, with a "
    "sampler that adds no noise and goes by these sigmas, such as euler, dpmpp_2m and res_multistep."
)
SEEDS = 2**64
# What a ControlNet of a conditioning is told, beside its weights.
TOLD = ("strength", "timestep_percent_range", "cond_hint_original", "previous_controlnet")
# Words, spaces and a few signs; what systems understand otherwise is not among them.
FILE_NAME = re.compile(r"\w(?:[\w .()+-]{0,78}[\w()+-])?")
RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)  # on Windows


@dataclass(frozen=True, eq=False)
class Workflow:
    """What SamplerCustom is given."""

    model: Any
    noise_seed: int
    cfg: float
    positives: Sequence[list]
    """Prompts, which the seeds are drawn with in turn."""
    negative: list
    sampler: Any
    sigmas: Tensor
    """(N + 1,)"""
    latent: Mapping[str, Any]


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


def checked_name(name: str) -> str:
    """The name of a file, without its ending. Raises ValueError for one with a folder in it, or with
    signs that not every system has in names."""
    stem = name.strip().removesuffix(ENDING)
    if FILE_NAME.fullmatch(stem) and not RESERVED.fullmatch(stem):
        return stem
    raise ValueError(
        f"{NAME}: name = {name!r} was given; accepted is the name of a file without a folder: up to "
        "80 letters, digits, spaces and . _ - + ( ), the first one a letter or a digit. It will lie in "
        f"models/{FOLDER}."
    )


def calibrate(workflow: Workflow, name: str, effort: str, node: str = "") -> Calibrated:
    """Calibrate a workflow and write the file. effort: one of EFFORTS; node: execution id of the node
    that shows how it goes on. Raises ValueError, in the node's words, for what cannot be calibrated
    or written, and what the host raises on Cancel; what was drawn by then is kept."""
    folder = Path(folder_paths.models_dir) / FOLDER
    path = folder / f"{checked_name(name)}{ENDING}"
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
        state.write(figures)  # now, and not after the first picture
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
    try:
        chosen = calibration.run()
    finally:
        if not figures.tables:  # nothing to go on with
            forget(state)
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


# What can be calibrated.


def check(workflow: Workflow) -> tuple[ModelKey, HostFacts]:
    """What a workflow's model is known by, and facts of its runs. Raises ValueError for one that
    cannot be calibrated."""
    model = workflow.model
    chain = chain_of(model)
    if chain is not None:
        techniques = ", ".join(policy.technique for policy in chain.policies)
        raise ValueError(
            f"{NAME}: the model comes from a RAPID node ({techniques}); give the model before RAPID's "
            "nodes."
        )
    if "easycache" in model.model_options.get("transformer_options", {}):
        raise ValueError(
            f"{NAME}: EasyCache or LazyCache is on the model, which skips by itself; give the model "
            "before it."
        )
    if workflow.sigmas.shape[-1] < 2:
        raise ValueError(f"{NAME}: sigmas of no step were given. {ACCEPTED}")
    if describe(model.model.diffusion_model) is None:
        family = type(model.model.diffusion_model).__name__
        raise ValueError(
            f"{NAME}: {family} is of no family that RAPID has policies for. RAPID Accelerate speeds it "
            "up without one; switch learn on there."
        )
    if workflow.latent["samples"].is_nested:
        raise ValueError(f"{NAME}: the latent has several parts; accepted is one tensor.")
    guider = CFGGuider(model)
    guider.set_conds(workflow.positives[0], workflow.negative)
    guider.set_cfg(workflow.cfg)
    guider.conds = {name: [c.copy() for c in some] for name, some in guider.original_conds.items()}
    latent = latent_of(workflow)
    check_channels(model.model, latent)
    facts = host_facts(guider, latent, workflow.sampler, workflow.sigmas)
    why = unsafe(facts)
    if why is not None:
        raise ValueError(f"{NAME}: {text(why)}. {ACCEPTED}")
    if facts.sampler_kind is SamplerKind.OWN_SIGMAS:
        raise ValueError(
            f"{NAME}: the sampler {facts.sampler} chooses sigmas of its own. {ACCEPTED}"
        )
    if any(b >= a for a, b in zip(facts.sigmas, facts.sigmas[1:], strict=False)):
        raise ValueError(f"{NAME}: sigmas do not fall from step to step. {ACCEPTED}")
    key = key_of(guider, facts)
    if isinstance(key, Reason):
        raise ValueError(f"{NAME}: {text(key)}")
    return key, facts


def check_file(path: Path, key: ModelKey) -> None:
    """Raise ValueError where there is a file of this name that is no calibration of the model."""
    if not path.exists():
        return
    try:
        file = read(path)
        command = file.metadata["training_command"]
        other = "" if command.startswith(NAME) else f"it was made by {command}"
        if not other and file.metadata.get("weights") != key.weights:
            other = f"it was calibrated on other weights, {file.base_model}"
    except PolicyError as error:
        other = str(error)
    if other:
        raise ValueError(
            f"{NAME}: name = {path.stem!r} was given, and models/{FOLDER} has a file of that name that "
            f"is not replaced: {other}. Choose another name, or delete that file."
        )


# What decides the pictures.


def inputs_of(workflow: Workflow, key: ModelKey) -> str:
    """Fingerprint of all that decides the pictures of a workflow."""
    digest = hashlib.sha256()
    options = getattr(workflow.sampler, "extra_options", None)
    given = [key.to_json(), workflow.noise_seed, workflow.positives, workflow.negative, options]
    _add(digest, [*given, dict(workflow.latent)])
    return digest.hexdigest()[:32]


def _add(digest: Any, value: Any) -> None:
    """Add a value's content to a digest: tensors whole, objects by their class and what a ControlNet
    is told; what else they hold changes while they are used."""
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
        data = value.detach().cpu().contiguous().flatten()
        digest.update(data.view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for name in sorted(value, key=str):
            digest.update(f"{name}:".encode())
            _add(digest, value[name])
    elif isinstance(value, (list, tuple)):
        digest.update(f"[{len(value)}".encode())
        for one in value:
            _add(digest, one)
    elif value is None or isinstance(value, (str, bytes, numbers.Number)):
        digest.update(repr(value).encode())
    else:
        digest.update(getattr(value, "__qualname__", type(value).__qualname__).encode())
        _add(digest, [getattr(value, name, None) for name in TOLD])


# Drawing.


class Drawer:
    """Draws the pictures of a workflow by the number of their seed (`calibration.plans.Pictures`)."""

    def __init__(
        self,
        workflow: Workflow,
        facts: HostFacts,
        state: State,
        latents: dict[int, Tensor],
        progress: Progress,
    ):
        self.workflow = workflow
        self.facts = facts
        self.state = state
        self.latents = latents
        """(B, C, ...) of full pictures, float32, by number."""
        self.progress = progress

    def full(self, number: int) -> list[Table]:
        """Draw a picture with all steps, and keep its latent. What each image of it shows of gaps.
        Raises ValueError where it is no picture, or shows nothing."""
        tables: list[Table] = []

        def shown(run: Run) -> None:
            tables.extend(run.gap_errors())

        latent, record = self._draw(number, SchedulePolicy(watch=True), 1.0, shown)
        if not latent.isfinite().all():
            raise ValueError(
                f"{NAME}: the full picture of seed {self._seed(number)} has numbers that are not finite "
                "(a black picture). Look at the model, its precision and the conditionings."
            )
        if not tables:
            raise ValueError(
                f"{NAME}: the pictures of this workflow do not show what skipping steps would cost"
                f"{_because(record)}. {ACCEPTED}"
            )
        self.latents[number] = latent
        try:
            self.state.write_latents(self.latents)
        except (OSError, SafetensorError) as error:
            logging.warning("RAPID: a picture of a calibration could not be kept (%s)", error)
        return tables

    def psnr(self, plan: Plan, number: int) -> float:
        """Draw a picture with these steps. PSNR in dB of its latent to the full one, the mean of its
        images. Raises ValueError where this workflow computes all steps whatever is asked for."""
        policy = SchedulePolicy(
            schedule=Schedule(plan, self.facts.sigmas), source="calibration", safe=False
        )
        latent, record = self._draw(number, policy, sum(plan) / len(plan))
        modes = {mode for e in record.evaluations for mode in e.modes} if record else set()
        if not all(plan) and Mode.SKIP.value not in modes:
            raise ValueError(
                f"{NAME}: this workflow computes all steps, whatever is to be skipped{_because(record)}"
            )
        pairs = zip(latent, self.latents[number], strict=True)
        return mean(latent_psnr(one, full) for one, full in pairs)

    def _seed(self, number: int) -> int:
        return (self.workflow.noise_seed + number) % SEEDS

    def _draw(
        self, number: int, policy: Policy, cost: float, shown: Any = None
    ) -> tuple[Tensor, RunRecord | None]:
        """The latent (B, C, ...) of a picture with a policy on the model, float32, and the run's
        record. cost: in full pictures."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        workflow = self.workflow
        model = attach(workflow.model, policy)
        options = model.model_options["transformer_options"]
        options[KEY] = replace(options[KEY], shown=shown)
        seed = self._seed(number)
        latent = latent_of(workflow)
        samples = comfy.sample.sample_custom(
            model,
            comfy.sample.prepare_noise(latent, seed, workflow.latent.get("batch_index")),
            workflow.cfg,
            workflow.sampler,
            workflow.sigmas,
            workflow.positives[number % len(workflow.positives)],
            workflow.negative,
            latent,
            noise_mask=workflow.latent.get("noise_mask"),
            callback=self.progress.callback(cost),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
        records = options[KEY].log.records
        return samples.detach().cpu().float(), records[-1] if records else None


def latent_of(workflow: Workflow) -> Any:
    """The latent as SamplerCustom makes it fit the model."""
    given = workflow.latent
    fit = comfy.sample.fix_empty_latent_channels
    known = inspect.signature(fit).parameters  # older hosts take less
    ratios = {
        name: given[name]
        for name in ("downscale_ratio_spacial", "downscale_ratio_temporal")
        if name in given and name in known
    }
    return fit(workflow.model, given["samples"], **ratios)


def _because(record: RunRecord | None) -> str:
    """What a run's record says for a reason."""
    if record is None:
        return ""
    reasons = [*record.notes, *(reason for e in record.evaluations for reason in e.reasons)]
    said = dict.fromkeys(text(reason) for reason in reasons)
    return f": {'; '.join(said)}" if said else ""


class Progress:
    """What the page shows of a calibration: a bar over its budget, the latest picture, and the time
    left on the node. Nothing of it can cost a calibration."""

    def __init__(self, model: Any, node: str, budget: float, steps: int):
        self.node = node
        self.budget = budget
        self.steps = steps
        self.spent: Callable[[], float] = lambda: 0.0  # so far, in full pictures
        self.bar = comfy.utils.ProgressBar(round(budget * steps))
        self.previewer = previewer_of(model)
        self.began: tuple[float, float] | None = None  # seconds, and what was spent by then

    def callback(self, cost: float) -> Any:
        """The host's callback for a picture of this cost, in full pictures."""
        before = self.spent()
        if self.began is None:
            self.began = time.perf_counter(), before

        def callback(step: int, denoised: Any, _x: Any, steps: int) -> None:
            value = round((before + cost * (step + 1) / steps) * self.steps)
            preview = self._preview(denoised) if step + 1 >= steps else None
            self.bar.update_absolute(value, None, preview)

        return callback

    def _preview(self, denoised: Any) -> Any:
        if self.previewer is None:
            return None
        try:
            return self.previewer.decode_latent_to_preview_image("JPEG", denoised)
        except Exception as error:
            logging.warning("RAPID: no preview is shown (%s)", error)
            self.previewer = None
            return None

    def tell(self) -> None:
        """Show on the node how far it is."""
        say(self.node, self.line)

    def line(self) -> str:
        """How far it is, and how long it takes at the most from here."""
        spent = self.spent()
        line = f"{spent:.1f} of {self.budget:g} pictures"
        began, before = self.began or (0.0, spent)
        if spent > before:
            left = (time.perf_counter() - began) / (spent - before) * (self.budget - spent)
            line += f" · {shown_time(left)} left"
        return line

    def end(self) -> None:
        """All is drawn, be it less than the budget."""
        self.bar.update_absolute(self.bar.total)
        say(self.node, lambda: f"{self.spent():.1f} pictures · done")


def previewer_of(model: Any) -> Any:
    """What makes previews of a model's latents, as the host's settings have it; None for none."""
    try:
        return latent_preview.get_previewer(model.load_device, model.model.latent_format)
    except Exception as error:
        logging.warning("RAPID: there are no previews (%s)", error)
        return None


def shown_time(seconds: float) -> str:
    """A time as people read it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# What the file says of itself.


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
    return "\n".join(lines)
