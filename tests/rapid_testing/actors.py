"""A policy by itself, on a schedule of equal steps."""

from rapid_core.actions import ImageState, Level, Observation, Window


def marks_of(policy, steps, measured=(), euler=True):
    """Run the actor on a schedule of equal steps; measured: number of an evaluation, what was measured before it."""
    schedule = tuple(1 - i / steps for i in range(steps)) + (0.0,)
    actor, levels, out = policy.start(Window(1.0, 0.0)), (), []
    for i in range(steps):
        image = ImageState(len(levels), 0, 0.1, dict(measured).get(i), levels=levels[-4:])
        (action,) = actor.act(Observation(i, schedule[i], (image,), i, steps, schedule=schedule, euler=euler))
        if action.level is Level.RUN:
            levels = (*levels, schedule[i])
        out.append(action)
    return out, actor


def text(actions):
    return "".join("#" if a.level is Level.RUN else "." for a in actions)
