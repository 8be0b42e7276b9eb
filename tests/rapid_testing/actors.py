"""A policy by itself, on a schedule of equal steps."""

import torch

from rapid_core.types import HeadInput, ImageState, Mode, Observation, Window


def marks_of(policy, steps, euler=True, forced=(), blind=False, **known):
    """Run the actor on a schedule of equal steps; forced: evaluations that are computed whatever
    the answer; blind: whether levels are not told; known: of the image."""
    schedule = tuple(1 - i / steps for i in range(steps)) + (0.0,)
    actor, levels, out, since = policy.start(Window(1.0, 0.0)), (), [], 0
    for i in range(steps):
        image = ImageState(len(levels), since, 0.1, levels=() if blind else levels[-4:], **known)
        (action,) = actor.act(
            Observation(i, schedule[i], (image,), i, steps, schedule=schedule, euler=euler)
        )
        since += 1
        if action.level is Mode.RUN or i in forced:
            levels, since = (*levels, schedule[i]), 0
        out.append(action)
    return out, actor


def text(actions):
    return "".join("#" if a.level is Mode.RUN else "." for a in actions)


METADATA = dict(
    architecture="flux",
    base_model="demo flux",
    budgets=[2.0, 4.0],
    reward="psnr",
    licence="Apache-2.0",
    training_command="dev.py train",
)


def run_heads(policy, steps, channels, euler=False):
    """Heads on random latents: their actions, and the noise levels that were computed or reused."""
    schedule = tuple(1 - i / steps for i in range(steps)) + (0.0,)
    make = torch.Generator().manual_seed(7)
    actor, levels, since, out, ran = policy.start(Window(1.0, 0.0)), (), 0, [], []
    for i in range(steps):
        parts = [torch.randn(channels, 8, 8, generator=make) for _ in range(3)]
        answers = actor.ask([HeadInput(*parts)] if levels else [None], torch.tensor(schedule[i]))
        image = ImageState(len(levels), since, 0.1, levels=levels[-4:])
        seen = Observation(
            i,
            schedule[i],
            (image,),
            i,
            steps,
            schedule=schedule,
            euler=euler,
            answers=() if answers is None else tuple(answers.tolist()),
        )
        (action,) = actor.act(seen)
        since = since + 1
        if action.level is Mode.RUN:
            levels, since = (*levels, schedule[i]), 0
        if action.level is not Mode.SKIP:
            ran.append(schedule[i])
        out.append(action)
    return out, ran
