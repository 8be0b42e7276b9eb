"""Euler through the engine, on a model that is one formula: what policies make of latents, without
ComfyUI."""

import torch

from evaluation.decisions import Decision
from rapid_core.engine.plan import HostFacts, plan_run
from rapid_core.engine.run import Run
from rapid_core.engine.tap import Tap
from rapid_core.types import Mode

KEY = ("the one conditioning",)


def derivative(x, sigma):
    """Bends over sigma and with the latent."""
    return torch.tanh(2 * x) + torch.sin(5 * sigma + x)


def sampled(policy, sigmas, channels=4, batch=2):
    """Latents (batch, channels, 8, 8) of a run with a policy, and the decisions of each image."""
    facts = HostFacts(shape=(batch, channels, 8, 8), sigmas=sigmas)
    run = Run(plan_run((policy,), facts), Tap())
    x = torch.randn(batch, channels, 8, 8, generator=torch.Generator().manual_seed(3))
    made = [[] for _ in range(batch)]
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        at = torch.tensor(sigma)
        evaluation = run.begin(x, at.expand(batch))
        evaluation.cond_keys = {KEY}
        rows = []
        for image, action in zip(run.images, evaluation.actions, strict=True):
            if action.mode is Mode.SKIP:
                value = image.predict_cond(KEY, evaluation)
            else:
                value = derivative(x[image.number], at)
                image.cond(KEY).add(evaluation.sigmas[image.number], value)
            rows.append(value)
            made[image.number].append(Decision(action.mode.value, density=action.density))
        given = run.end(evaluation, x, x - at * torch.stack(rows))
        x = x + (following - at) * (x - given) / at
    return x, made
