"""A policy by itself, on a schedule of equal steps."""

from dataclasses import replace

from rapid_core.types import FULL, Mode, Observation, Window

WHOLE = Window(1.0, 0.0)


def marks_of(policy, steps, euler=True, forced=(), blind=False, safe=False, window=WHOLE, **known):
    """Run the actor on a schedule of equal steps; forced: evaluations that are computed whatever
    the answer; blind: whether sigmas are not told; safe: whether the policy stays as it is where it
    asks for safety; window: sigmas between which it acts; known: of the image."""
    if hasattr(policy, "safe") and not safe:
        policy = replace(policy, safe=False)
    sigmas = tuple(1 - i / steps for i in range(steps)) + (0.0,)
    actor, history, out, since = policy.start(window), (), [], 0
    for i in range(steps):
        action = actor.act(
            Observation(
                index=i,
                sigma=sigmas[i],
                step=i,
                steps=steps,
                sigmas=sigmas,
                euler=euler,
                computed=len(history),
                since_computed=since,
                error=0.1,
                history=() if blind else history[-4:],
                **known,
            )
        )
        out.append(action)
        action = FULL if i in forced else action
        actor.executed(action)
        since += 1
        if action.mode is Mode.RUN:
            history, since = (*history, sigmas[i]), 0
    return out, actor


def text(actions):
    """One character an evaluation: # computed, . skipped or reused."""
    return "".join("#" if a.mode is Mode.RUN else "." for a in actions)


METADATA = dict(
    architecture="flux",
    base_model="demo flux",
    budgets=[2.0, 4.0],
    reward="psnr",
    licence="Apache-2.0",
    training_command="dev.py train",
)
