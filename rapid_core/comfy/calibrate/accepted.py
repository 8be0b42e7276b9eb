"""What can be calibrated, and under which names."""

from __future__ import annotations

from pathlib import Path

from comfy.samplers import CFGGuider

from ...architectures import describe
from ...calibration.model_key import ModelKey
from ...engine.plan import FEW_STEPS, HostFacts, unsafe
from ...policy_file.format import PolicyError, read
from ...policy_file.gaps import sigmas_problem
from ...policy_file.names import plain_name
from ...reasons import text
from ...types import Reason, SamplerKind
from ..chain import chain_of, check_channels
from ..facts import host_facts
from ..learning import FOLDER
from ..model_key import key_of
from .workflow import Workflow, latent_of

NAME = "RAPID Calibrate"
ACCEPTED = (
    f"What can be calibrated: runs of {FEW_STEPS + 1} steps and more on sigmas that fall, with a "
    "sampler that adds no noise and goes by these sigmas, such as euler, dpmpp_2m and res_multistep."
)


def checked_name(name: str) -> str:
    """The name of a file, without its ending. Raises ValueError for one with a folder in it, or with
    signs that not every system has in names."""
    plain = plain_name(name)
    if plain is not None:
        return plain
    raise ValueError(
        f"{NAME}: name = {name!r} was given; accepted is the name of a file without a folder: up to "
        "80 letters (63 Chinese ones), digits, spaces and . _ - + ( ), the first one a letter or a digit. "
        f"It will lie in models/{FOLDER}."
    )


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
    latent = latent_of(workflow)
    check_channels(model.model, latent)
    guiders = [_guider(workflow, positive) for positive in workflow.positives]
    every = [host_facts(g, latent, workflow.sampler, workflow.sigmas) for g in guiders]
    guider, facts = guiders[0], every[0]
    why = unsafe(facts)
    if why is not None:
        raise ValueError(f"{NAME}: {text(why)}. {ACCEPTED}")
    if facts.sampler_kind is SamplerKind.OWN_SIGMAS:
        raise ValueError(
            f"{NAME}: the sampler {facts.sampler} chooses sigmas of its own. {ACCEPTED}"
        )
    if any(one.turns for one in every):
        raise ValueError(
            f"{NAME}: a prompt, a ControlNet or a hook begins or ends within the run. What is learned of "
            "such a run holds for no other, and RAPID Accelerate plans around it without a file. Give "
            "conditionings that act from the first step to the last."
        )
    problem = sigmas_problem(facts.sigmas)
    if problem:
        raise ValueError(f"{NAME}: sigmas {problem}. {ACCEPTED}")
    key = key_of(guider, facts)
    if isinstance(key, Reason):
        raise ValueError(f"{NAME}: {text(key)}")
    return key, facts


def _guider(workflow: Workflow, positive: list) -> CFGGuider:
    """What will sample with one of the prompts."""
    guider = CFGGuider(workflow.model)
    guider.set_conds(positive, workflow.negative)
    guider.set_cfg(workflow.cfg)
    guider.conds = {name: [c.copy() for c in some] for name, some in guider.original_conds.items()}
    return guider


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
