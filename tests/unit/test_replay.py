"""Decisions made elsewhere: what is skipped is predicted, and corrected, as where they were
made."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks.policy import trained
from benchmarks.replay import ReplayPolicy, at_random
from rapid_core.policy_file.format import write
from rapid_core.policy_file.heads import head_metadata, head_tensors
from rapid_core.policy_file.schedules import schedule_tensors
from rapid_core.quadrature.gram import Gram
from rapid_core.quadrature.spacing import evenly_spaced
from rapid_core.techniques.heads.rapid3 import Heads, Rapid3Policy
from rapid_core.techniques.heads.rapid_plus import NUMBERS, RapidPlusPolicy
from rapid_core.techniques.step_skip.schedule import Schedule, SchedulePolicy
from rapid_core.types import Aim, Sparsity
from rapid_testing.actors import METADATA
from rapid_testing.euler import sampled
from rapid_testing.heads import falling
from rapid_testing.runs import bending, products_of

CHANNELS, STEPS = 4, 28
SIGMAS = falling(STEPS)
GRAM = Gram.of(products_of(bending(SIGMAS, 4)), STEPS)


class Kept:
    """Where choices are drawn, and nothing is written down."""

    def add(self, *row):
        pass


def plus(gram=None, seed=2):
    """Drawn paces on a ladder, so that images leave the schedule each in its own way."""
    torch.manual_seed(0)
    ladder = tuple(Schedule(evenly_spaced(n, STEPS), SIGMAS, gram) for n in (7, 9, 11, 14))
    return RapidPlusPolicy(
        heads=Heads(CHANNELS, 24, ("pace",), NUMBERS, 16),
        speedup=STEPS / 11,
        prediction_order=1,
        schedule=ladder[2],
        ladder=ladder,
        rollout=Kept(),
        seed=seed,
    )


def published():
    torch.manual_seed(0)
    return Rapid3Policy(
        heads=Heads(CHANNELS, 24, ("step",), width=16), speedup=1.0, rollout=Kept(), seed=2
    )


@pytest.mark.parametrize(
    "policy",
    [plus(), plus(GRAM), published(), SchedulePolicy(speedup=2.5, safe=False)],
    ids=["measured gaps", "fitted weights", "published", "no file"],
)
def test_its_own_decisions_draw_the_same_picture_again(policy):
    latents, decisions = sampled(policy, SIGMAS)
    again = ReplayPolicy(decisions=tuple(map(tuple, decisions)), policy=policy)
    found, made = sampled(again, SIGMAS)
    assert made == decisions and decisions[0].count(decisions[0][0]) < STEPS
    assert torch.equal(found, latents)


def test_decisions_are_about_the_attention_of_the_heads_that_made_them():
    heads = Heads(CHANNELS, 24, width=16)
    gather = Sparsity("gather")
    policy = Rapid3Policy(heads=heads, speedup=2.0, sparsity=gather)
    dense = at_random(STEPS, 2.0, 0)[0]
    sparse = dense._replace(density=0.25)
    needs = [
        ReplayPolicy(decisions=((one,),), policy=policy).requirements for one in (dense, sparse)
    ]
    assert [need.attention for need in needs] == [None, gather]


def test_heads_stand_beside_the_schedule_they_begin_with_towards_their_own_aim(
    tmp_path, monkeypatch
):
    """Whose pictures others would be nearer to, whatever heads learned."""
    policy = plus()
    about = {
        **METADATA,
        **head_metadata(policy.heads, 1, (0.5, 0.25, 0.125)),
        "structure": "rapid+",
        "budgets": [2.0, 2.5, 3.0, 4.0],
        "aim": "best picture",
    }
    tensors = {**head_tensors(policy.heads), **schedule_tensors(policy.ladder[::-1])}
    write(tmp_path / "demo-flux-pace.safetensors", "heads", about, tensors)
    attached = []
    monkeypatch.setattr("benchmarks.policy.attached", attached.append)
    suite = SimpleNamespace(kind="flux", once=lambda _, find: find(), out=tmp_path)
    methods = trained(None, suite, 2.5, tmp_path)
    assert [method.name for method in methods] == ["pace", "pace_shuffled", "pace_untrained"]
    (schedule,) = attached
    assert schedule.requirements.aim is Aim.BEST_PICTURE
    assert schedule.schedule.computed == policy.schedule.computed and schedule.speedup == 2.5
