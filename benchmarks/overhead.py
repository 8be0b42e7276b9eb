"""What an evaluation of RAPID Accelerate costs beside the model: deciding, remembering, recording.

    python -m benchmarks.overhead

Prints microseconds an evaluation, the best of 60 runs of 28 steps on latents of 16 x 8 x 8. Needs no
ComfyUI. To compare two revisions, run it in a checkout of each in turn, on an idle machine."""

from __future__ import annotations

import time

import torch

from rapid_core.engine.plan import HostFacts, plan_run
from rapid_core.engine.recorder import RunRecorder
from rapid_core.engine.run import Run
from rapid_core.techniques.step_skip.schedule import SchedulePolicy

STEPS = 28
RUNS = 60
SHAPE = (1, 16, 8, 8)
SIGMAS = (*(1 - i / STEPS for i in range(STEPS)), 0.0)


def microseconds() -> float:
    """Of an evaluation, in the mean of one run."""
    policy = SchedulePolicy(speedup=2.0)
    run = Run(plan_run([policy], HostFacts(shape=SHAPE, sigmas=SIGMAS)))
    recorder = RunRecorder(run, (policy.to_record(),))
    x = torch.randn(SHAPE)
    start = time.perf_counter()
    for sigma in SIGMAS[:-1]:
        recorder.begin()
        evaluation = run.begin(x, torch.tensor([sigma]))
        run.end(evaluation, x, torch.randn(SHAPE))
        recorder.add(evaluation, 0)
    return (time.perf_counter() - start) / STEPS * 1e6


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"{min(microseconds() for _ in range(RUNS)):.0f} us an evaluation")
