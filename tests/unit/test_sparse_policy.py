"""The policy of sparse attention: where it is sparse, and where differences are measured."""

import pytest

from rapid_core.techniques.sparse_attention.policy import SparsePolicy
from rapid_core.types import FULL, Mode, Observation, Sparsity, Window

EVERYWHERE = Window(1.0, 0.0)


def densities(policy, steps=8, window=EVERYWHERE):
    """One character an evaluation: # dense, m dense and measured, s sparse."""
    actor, since, out = policy.start(window), -1, ""
    for i in range(steps):
        action = actor.act(Observation(i, 1 - i / steps, since_measured=since))
        actor.executed(action)
        if action.measured_density is not None:
            assert action.density == 1.0 and action.measured_density == policy.density
            since = 0
        elif since >= 0:
            since += 1
        out += "m" if action.measured_density else "#" if action == FULL else "s"
    return out


def test_attention_is_sparse_within_the_window():
    policy = SparsePolicy(density=0.25, start_percent=0.3, end_percent=0.6)
    assert policy.percents == (0.3, 0.6)
    assert densities(policy, window=Window(0.7, 0.4)) == "###ss###"


@pytest.mark.parametrize("compensation", ["last value", "predict"])
def test_differences_are_measured_before_they_are_used_and_after_the_interval(compensation):
    sparsity = Sparsity(compensation=compensation)
    policy = SparsePolicy(density=0.25, sparsity=sparsity, refresh_interval=2)
    assert densities(policy) == "mssmssms"


@pytest.mark.parametrize("compensation", ["means", "none"])
def test_without_differences_nothing_is_measured(compensation):
    assert densities(SparsePolicy(density=0.25, sparsity=Sparsity(compensation=compensation))) == (
        "s" * 8
    )


def test_it_is_about_attention_and_nothing_else():
    needs = SparsePolicy(density=0.25).requirements
    assert needs.attention_only and needs.blocks and needs.modes == {Mode.RUN}
    assert needs.attention_density == 0.25 and not needs.decides_schedule


def test_a_record_has_the_interval_where_it_counts():
    plain, keeping = (
        SparsePolicy(density=0.25, sparsity=Sparsity(compensation=compensation)).to_record()
        for compensation in ("means", "predict")
    )
    assert plain["technique"] == "sparse_attention" and plain["density"] == 0.25
    assert plain["sparsity"]["compensation"] == "means" and "refresh_interval" not in plain
    assert keeping["refresh_interval"] == 2
