"""Drawing the pictures of a workflow, as SamplerCustom draws them."""

from __future__ import annotations

import logging
from dataclasses import replace
from statistics import mean
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.utils
from safetensors import SafetensorError
from torch import Tensor

from ...calibration.plans import Plan, Table
from ...calibration.search import latent_psnr
from ...calibration.state import State
from ...engine.plan import HostFacts
from ...engine.run import Run
from ...reasons import text
from ...record import RunRecord
from ...techniques.step_skip.schedule import Schedule, SchedulePolicy
from ...types import Mode, Policy
from ..chain import KEY, attach
from .accepted import ACCEPTED, NAME
from .progress import Progress
from .workflow import Workflow, latent_of

SEEDS = 2**64


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


def _because(record: RunRecord | None) -> str:
    """What a run's record says for a reason."""
    if record is None:
        return ""
    reasons = [*record.notes, *(reason for e in record.evaluations for reason in e.reasons)]
    said = dict.fromkeys(text(reason) for reason in reasons)
    return f": {'; '.join(said)}" if said else ""
