"""Learned heads by themselves, on a schedule of equal steps."""

import torch

from rapid_core.types import HeadInput, Mode, Observation, Window

WINDOW = Window(1.0, 0.0)


def falling(steps):
    """Sigmas of equal steps from 1 to 0."""
    return tuple(1 - i / steps for i in range(steps)) + (0.0,)


def decide(actor, seen, index, sigmas, history, since, **known):
    """One evaluation of an image, executed as the actor wants it."""
    logits = actor.logits(seen, torch.tensor(sigmas[index]))
    observation = Observation(
        index=index,
        sigma=sigmas[index],
        step=index,
        steps=len(sigmas) - 1,
        sigmas=sigmas,
        computed=len(history),
        since_computed=since,
        error=0.1,
        history=history[-4:],
        logits=() if logits is None else tuple(logits.tolist()),
        **known,
    )
    action = actor.act(observation)
    actor.executed(action)
    return action


def run_heads(policy, steps, channels, euler=False, image=0):
    """Heads on random latents: their actions, the sigmas that were computed or reused, and the
    actor."""
    sigmas = falling(steps)
    make = torch.Generator().manual_seed(7)
    actor = policy.start(WINDOW, image)
    history, since, actions, ran = (), 0, [], []
    for i in range(steps):
        parts = [torch.randn(channels, 8, 8, generator=make) for _ in range(3)]
        seen = HeadInput(*parts) if history else None
        action = decide(actor, seen, i, sigmas, history, since, euler=euler)
        since += 1
        if action.mode is Mode.RUN:
            history, since = (*history, sigmas[i]), 0
        if action.mode is not Mode.SKIP:
            ran.append(sigmas[i])
        actions.append(action)
    return actions, ran, actor
