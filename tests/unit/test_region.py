"""The region policy: which tokens are chosen, how many, and that none waits for ever."""

import math
from dataclasses import dataclass, field, fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rapid_core.engine.token_stats import NEAR
from rapid_core.reasons import ReasonCode
from rapid_core.techniques.region.policy import (
    INACTIVE,
    MAX_AGE,
    MAX_MASKED_AGE,
    MAX_WAIT,
    RegionPolicy,
)
from rapid_core.techniques.region.presets import paper, per_token_error
from rapid_core.techniques.region.priority import round_to_blocks, signal, starving_age
from rapid_core.token_grid import TokenGrid
from rapid_core.types import FULL, KVKind, Mode, Must, Observation, TokenState, Window

ROWS, COLUMNS = 8, 8
NUMBER = ROWS * COLUMNS
BY_ERROR = replace(per_token_error(0.1, 0.5), tail=0.0)


def tokens(derivative=None, age=None, **more):
    if derivative is None:
        derivative = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(0))
    age = torch.zeros(NUMBER) if age is None else age
    selectable = more.pop("selectable", NUMBER)
    change = more.pop("change", torch.ones(NUMBER))
    return TokenState((1, ROWS, COLUMNS), age, derivative, change, selectable, **more)


def act(policy, state, step=10, steps=20, since_full=1, **known):
    actor = policy.start(Window(1, 0))
    return actor.act(
        Observation(
            step,
            1 - step / steps,
            step=step,
            steps=steps,
            computed=5,
            since_full=since_full,
            tokens=state,
            **known,
        )
    )


def chosen(*arguments, **known):
    """Numbers of the tokens, None for all."""
    action = act(*arguments, **known)
    return None if action.tokens is None else action.tokens.tolist()


@dataclass
class Ages:
    """What a run remembers of its tokens, by hand: counted in evaluations since one was
    computed."""

    age: torch.Tensor = field(default_factory=lambda: torch.zeros(NUMBER))
    error: torch.Tensor = field(default_factory=lambda: torch.zeros(NUMBER))
    since_full: int = 0
    since_computed: int = 0

    def executed(self, action):
        ran = torch.zeros(NUMBER, dtype=torch.bool)
        if action.mode is Mode.RUN:
            ran[:] = action.tokens is None
            if action.tokens is not None:
                ran[action.tokens] = True
        self.age = torch.where(ran, 0.0, self.age + 1)
        self.error = torch.where(ran, 0.0, self.error)
        self.since_full = 0 if action.all_tokens else self.since_full + 1
        self.since_computed = 0 if action.mode is Mode.RUN else self.since_computed + 1

    @property
    def known(self):
        return {"since_full": self.since_full, "since_computed": self.since_computed}


def spread_by_token(values):
    """A derivative whose channels differ by `values` at each token."""
    grid = TokenGrid((2, 16, 16))
    pixels = grid.to_pixels(torch.tensor(values, dtype=torch.float32))
    return torch.stack((pixels, -pixels))


def test_low_direction_takes_the_tokens_with_the_smallest_spread():
    values = [1.0 + i for i in range(NUMBER)]
    state = tokens(spread_by_token(values))
    assert chosen(
        RegionPolicy(keep_ratio=0.25, metric="std", direction="low", starvation=0), state
    ) == list(range(16))
    assert chosen(
        RegionPolicy(keep_ratio=0.25, metric="std", starvation=0, direction="high"), state
    ) == list(range(48, 64))


def test_a_neglected_token_rises_whatever_the_direction():
    values = [1.0 + i for i in range(NUMBER)]
    for direction, worst in (("low", 63), ("high", 0)):
        age = torch.zeros(NUMBER)
        age[worst] = 6
        policy = RegionPolicy(keep_ratio=0.25, metric="std", starvation=1.0, direction=direction)
        assert worst in chosen(policy, tokens(spread_by_token(values), age))


@settings(max_examples=40)
@given(
    st.floats(0.1, 0.9),
    st.sampled_from(["std", "l2", "change", "rounds"]),
    st.sampled_from(["low", "high"]),
    st.floats(0, 0.5),
    st.one_of(st.just(0.0), st.floats(-1, 1)),
    st.integers(1, NUMBER),
    st.booleans(),
    st.integers(0, 1000),
)
def test_no_token_waits_longer_than_the_bound(
    ratio, metric, direction, starvation, slope, selectable, painted, seed
):
    policy = RegionPolicy(
        keep_ratio=ratio,
        warm_up=0.0,
        tail=0.0,
        refresh_interval=0,
        metric=metric,
        direction=direction,
        starvation=starvation,
        slope=slope,
    )
    generator = torch.Generator().manual_seed(seed)
    may_run = torch.randperm(NUMBER, generator=generator) < selectable
    focus = (torch.rand(NUMBER, generator=generator) < 0.5).float() if painted else None
    scale = torch.rand(4, 16, 16, generator=generator) * 10  # some places always matter more
    run, longest, fewest = Ages(), 0.0, selectable
    for step in range(100):
        state = tokens(
            torch.randn(4, 16, 16, generator=generator) * scale,
            run.age,
            selectable=selectable,
            may_run=may_run,
            focus=focus,
            change=torch.rand(NUMBER, generator=generator) * scale[0, ::2, ::2].flatten(),
        )
        action = act(policy, state, step, 100, **run.known)
        run.executed(action)
        if action.tokens is not None:
            fewest = min(fewest, len(action.tokens))
        longest = max(longest, run.age[may_run].max().item())
    least = ratio if not slope else max(ratio * (1 - abs(slope)), 4 / selectable)
    assert longest <= starving_age(min(1.0, least)) + math.ceil(selectable / fewest)


def test_the_bound_follows_the_smallest_share_of_a_slope():
    state = tokens(age=torch.full((NUMBER,), 4.0))
    assert RegionPolicy(keep_ratio=0.5).smallest_share(state) == 0.5
    assert (
        RegionPolicy(keep_ratio=0.5, slope=0.5).smallest_share(state)
        == RegionPolicy(keep_ratio=0.5, slope=-0.5).smallest_share(state)
        == 0.25
    )
    assert RegionPolicy(keep_ratio=0.5, slope=1.0).smallest_share(state) == 4 / NUMBER


def run_by_error(threshold, ratio, seed, may_run=None):
    """60 evaluations by error estimates: (action, state before, run after) of each."""
    policy = replace(per_token_error(threshold, ratio), tail=0.0)
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(NUMBER, generator=generator) ** 4  # some places are much rougher than others
    selectable = NUMBER if may_run is None else int(may_run.sum())
    run = Ages()
    for step in range(60):
        run.error = run.error + scale * torch.rand(NUMBER, generator=generator)
        over = (run.error >= threshold) | (run.age >= MAX_AGE)
        near = over | (run.error >= NEAR * threshold)
        allowed = torch.ones(NUMBER, dtype=torch.bool) if may_run is None else may_run
        state = tokens(
            None,
            run.age,
            selectable=selectable,
            may_run=may_run,
            error=run.error,
            over_threshold=int((over & allowed).sum()),
            near_threshold=int((near & allowed).sum()),
        )
        action = act(policy, state, step, 100, **run.known)
        run.executed(action)
        yield action, state, run


@settings(max_examples=25)
@given(st.floats(0.001, 3.0), st.floats(0.1, 0.9), st.integers(0, 1000))
def test_tokens_with_errors_of_their_own_are_never_late(threshold, ratio, seed):
    """Every token over the threshold is computed with the others; few wait two evaluations at
    most."""
    for action, state, run in run_by_error(threshold, ratio, seed):
        assert run.age.max() <= MAX_AGE + MAX_WAIT
        if action.tokens is not None:
            left = torch.ones(NUMBER, dtype=torch.bool).index_fill(0, action.tokens, False)
            assert (state.error[left] < threshold).all()
            assert len(action.tokens) <= ratio * NUMBER + 4


@settings(max_examples=25)
@given(st.floats(0.001, 3.0), st.floats(0.1, 0.9), st.integers(0, NUMBER - 1), st.integers(0, 1000))
def test_tokens_that_a_mask_keeps_are_not_forgotten(threshold, ratio, selectable, seed):
    may_run = torch.randperm(NUMBER, generator=torch.Generator().manual_seed(seed)) < selectable
    for _, _, run in run_by_error(threshold, ratio, seed, may_run):
        assert run.age.max() <= MAX_MASKED_AGE
        assert not selectable or run.age[may_run].max() <= MAX_AGE + MAX_WAIT


def test_few_tokens_over_the_threshold_wait_and_many_are_all():
    error = torch.arange(NUMBER) / NUMBER

    def answer(over, near, since):
        state = tokens(error=error, over_threshold=over, near_threshold=near)
        return act(BY_ERROR, state, since_computed=since)

    assert answer(0, 40, 2).mode is answer(19, 40, 1).mode is Mode.SKIP
    assert answer(3, 3, 2).tokens.tolist() == [60, 61, 62, 63]
    assert answer(3, 5, 2).tokens.tolist() == list(range(56, 64))
    assert answer(20, 22, 0).tokens.tolist() == list(range(40, 64))
    assert answer(20, 33, 0).full and answer(None, None, 0).full


def test_warm_up_and_tail_are_shares_of_the_steps():
    policy, state = (
        RegionPolicy(keep_ratio=0.5, warm_up=0.2, tail=0.1, refresh_interval=0),
        tokens(),
    )
    full = [chosen(policy, state, step, 20) is None for step in range(20)]
    assert full == [True] * 4 + [False] * 14 + [True] * 2


def test_the_first_look_after_nothing_is_full():
    assert chosen(RegionPolicy(keep_ratio=0.5), tokens(), since_full=-1) is None


def test_refreshes_come_after_the_interval_and_with_drift():
    policy = RegionPolicy(keep_ratio=0.5, refresh_interval=3, drift_threshold=0.2)
    assert chosen(policy, tokens(), since_full=2) is not None
    assert chosen(policy, tokens(), since_full=3) is None
    assert chosen(policy, tokens(), measured_error=0.3) is None
    assert chosen(policy, tokens(), measured_error=0.1) is not None


def test_the_papers_schedules():
    def full(family, steps):
        policy, since, out = paper(family, 0.5), -1, []
        for step in range(steps):
            whole = chosen(policy, tokens(), step, steps, since) is None
            since = 0 if whole else since + 1
            out += [step] if whole else []
        return out

    assert full("sd3", 28) == [0, 1, 2, 3, 12, 20]
    for family in ("lumina_next", "lumina2"):
        assert full(family, 30) == [0, 1, 2, 3, 12, 22]


def test_the_papers_share_falls_on_lumina_and_is_constant_on_sd3():
    def shares(family, steps):
        policy = paper(family, 0.5)
        counts = (chosen(policy, tokens(), step, steps) for step in range(steps))
        return [len(c) / NUMBER for c in counts if c is not None]

    for family in ("lumina_next", "lumina2", "z_image"):
        found = shares(family, 30)
        assert (found[0], found[-1]) == (0.6875, 0.3125) and found == sorted(found, reverse=True)
        assert sum(found) / len(found) == pytest.approx(0.5, abs=0.02)
    assert set(shares("sd3", 28)) == {0.5}


def test_a_slope_gives_more_tokens_early_or_late():
    for slope in (0.5, -0.5):
        policy = RegionPolicy(keep_ratio=0.5, warm_up=0.0, tail=0.0, slope=slope)
        counts = [len(chosen(policy, tokens(), step, 20)) for step in range(20)]
        assert (counts[0] > counts[-1]) == (slope > 0)
        assert sum(counts) / 20 == pytest.approx(32, abs=2)


def test_counts_are_whole_blocks_and_at_least_one():
    assert [round_to_blocks(c, 4096) for c in (1, 100, 2047)] == [64, 128, 2048]
    assert round_to_blocks(0.5, 64) == 4 and round_to_blocks(9999, 64) == 64


def test_masked_tokens_are_never_chosen_and_the_users_mask_comes_first():
    may_run = torch.arange(NUMBER) < 40
    assert max(chosen(RegionPolicy(keep_ratio=0.5), tokens(may_run=may_run, selectable=40))) < 40
    frames = TokenState(
        (4, 4, 4),
        torch.zeros(NUMBER),
        torch.randn(4, 4, 8, 8),
        torch.ones(NUMBER),
        40,
        may_run=may_run,
    )
    assert (
        max(chosen(RegionPolicy(keep_ratio=0.5), frames)) < 40
    )  # the last frames are kept as they are
    focus = (torch.arange(NUMBER) >= 50).float()
    assert set(range(50, 64)) <= set(chosen(RegionPolicy(keep_ratio=0.25), tokens(focus=focus)))


def test_frames_share_what_a_mask_leaves_to_choose():
    def of_frames(may_run, ratio):
        derivative = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        derivative[:, 3] *= 100  # the last frame always matters most
        state = TokenState(
            (4, 4, 4),
            torch.zeros(NUMBER),
            derivative,
            torch.ones(NUMBER),
            NUMBER if may_run is None else int(may_run.sum()),
            may_run=may_run,
        )
        ran = chosen(RegionPolicy(keep_ratio=ratio, metric="std"), state)
        assert len(set(ran)) == len(ran) and (may_run is None or may_run[ran].all())
        return [sum(t // 16 == frame for t in ran) for frame in range(4)]

    assert of_frames(None, 0.25) == [4, 4, 4, 4]
    may_run = torch.ones(4, 16, dtype=torch.bool)
    may_run[0] = False  # given, as the first frame of image to video
    assert of_frames(may_run.flatten(), 0.5) == [0, 8, 8, 8]
    may_run[1, 2:] = False  # two of the second frame: what it leaves goes where it matters most
    assert of_frames(may_run.flatten(), 0.5) == [0, 2, 5, 9]


def test_where_less_than_a_block_may_change_nothing_else_is_computed():
    may_run, error = torch.arange(NUMBER) < 3, torch.ones(NUMBER)
    for policy in (RegionPolicy(keep_ratio=0.5), replace(BY_ERROR, keep_ratio=1.0)):
        state = tokens(
            may_run=may_run, selectable=3, error=error, over_threshold=2, near_threshold=2
        )
        assert chosen(policy, state, since_computed=MAX_WAIT) == [0, 1, 2]
        nothing = tokens(
            may_run=torch.zeros(NUMBER, dtype=torch.bool),
            selectable=0,
            error=error,
            over_threshold=0,
            near_threshold=0,
        )
        assert act(policy, nothing, since_computed=MAX_WAIT).mode is Mode.SKIP


def test_where_a_mask_leaves_few_tokens_and_many_have_errors_only_these_are_computed():
    state = tokens(
        may_run=torch.arange(NUMBER) < 10,
        selectable=10,
        error=torch.ones(NUMBER),
        over_threshold=10,
        near_threshold=10,
    )
    assert chosen(BY_ERROR, state, since_full=1) == list(range(10))
    assert act(BY_ERROR, state, since_full=MAX_MASKED_AGE).full


@pytest.mark.parametrize("shape", [(4, 15, 16), (4, 16, 15), (4, 15, 15), (4, 3, 15, 16)])
def test_the_metrics_of_odd_sizes_are_of_their_own_pixels(shape):
    """One loud pixel raises one token."""
    derivative = torch.zeros(shape)
    derivative[..., 3, 3] = torch.tensor([1.0, -1.0, 2.0, 0.0]).view(-1, *[1] * (len(shape) - 3))
    frames = shape[1] if len(shape) == 4 else 1
    state = TokenState(
        (frames, 8, 8), torch.zeros(64 * frames), derivative, torch.ones(64 * frames), 64 * frames
    )
    for name in ("std", "l2"):
        assert signal(name, state).nonzero().flatten().tolist() == [
            64 * frame + 9 for frame in range(frames)
        ]


def test_the_metrics_are_means_over_a_tokens_pixels():
    state = tokens()
    by_hand = state.derivative.reshape(4, 8, 2, 8, 2)
    assert torch.allclose(signal("std", state).view(8, 8), by_hand.std(0).mean((1, 3)), atol=1e-6)
    assert torch.allclose(
        signal("l2", state).view(8, 8), by_hand.norm(dim=0).mean((1, 3)), atol=1e-6
    )


@given(st.integers(1, 3), st.integers(2, 9), st.integers(2, 9), st.sampled_from([1, 2]))
def test_tokens_and_pixels_are_the_same_places(frames, height, width, patch):
    grid = TokenGrid((3, frames, height, width), patch)
    values = torch.arange(grid.number, dtype=torch.float32)
    assert torch.allclose(grid.to_tokens(grid.to_pixels(values)), values)


def test_a_mask_covers_the_pixels_of_its_tokens():
    mask = TokenGrid((16, 5, 4)).mask(torch.tensor([0, 5]))
    assert mask.shape == (1, 5, 4)
    assert mask[0].tolist() == [[True, True, False, False]] * 2 + [[False] * 4] * 2 + [
        [False, False, True, True]
    ]


def test_others_may_not_undercut_what_is_about_whole_evaluations():
    """Warm-up, tail, refresh, resets and the check of drift; not that many tokens have errors, or
    that nothing is known yet."""
    state = tokens(error=torch.ones(NUMBER), over_threshold=60, near_threshold=60)
    plain = RegionPolicy(keep_ratio=0.5, warm_up=0.2, tail=0.1)
    checked = replace(plain, refresh_interval=0, resets=(0.5,), drift_threshold=0.2)
    safe = [
        act(plain, state, step=3),
        act(plain, state, step=18),
        act(plain, state, since_full=3),
        act(checked, state, step=10),
        act(checked, state, step=11, measured_error=0.3),
    ]
    assert all(action.full and action.must is Must.ALL for action in safe)
    assert act(checked, state, step=11, measured_error=0.1).must is Must.NOTHING
    for policy, known in ((BY_ERROR, {}), (plain, {"since_full": -1}), (BY_ERROR, {"step": 5})):
        assert act(policy, state, **known) == FULL
    masked = replace(state, may_run=torch.arange(NUMBER) < 60, selectable=60)
    assert act(BY_ERROR, masked, since_full=MAX_MASKED_AGE).must is Must.ALL
    assert act(BY_ERROR, masked, since_full=1).must is Must.NOTHING


@pytest.mark.parametrize("metric", ["random", "rounds", "change"])
def test_the_choice_is_the_same_in_every_run(metric):
    policy = RegionPolicy(keep_ratio=0.25, metric=metric)
    first, again = (chosen(policy, tokens(), image=1) for _ in range(2))
    assert first == again
    others = [chosen(policy, tokens(), image=0), chosen(policy, tokens(), step=11, image=1)]
    assert (first not in others) == (metric == "random")


def test_what_it_needs_of_a_run():
    mask = torch.ones(1, 8, 8)
    policy = RegionPolicy(
        keep_ratio=0.5,
        kv=KVKind.EIGHT_BIT,
        memory_limit=2.0,
        reach=3.0,
        focus=mask,
        metric="attention",
        inactive="interpolate",
    )
    needs = policy.requirements
    assert needs.modes == {Mode.RUN, Mode.SKIP} and needs.blocks and not needs.decides_schedule
    tokens_needs = needs.tokens
    assert (tokens_needs.kv, tokens_needs.memory_limit) == (KVKind.EIGHT_BIT, 2.0)
    assert tokens_needs.reach == 3.0 and tokens_needs.focus is mask
    assert tokens_needs.interpolate and tokens_needs.attention_mass
    assert (tokens_needs.error_threshold, tokens_needs.max_age) == (0.0, 0)
    by_error = BY_ERROR.requirements.tokens
    assert (by_error.error_threshold, by_error.max_age) == (0.1, MAX_AGE)
    assert not by_error.interpolate and not by_error.attention_mass
    orders = [
        RegionPolicy(keep_ratio=0.5, inactive=i).requirements.prediction_order for i in INACTIVE
    ]
    assert orders == [0, 1, 1]
    assert needs.no_savings_advice.code == ReasonCode.ADVISE_SHARE.value
    assert BY_ERROR.requirements.no_savings_advice.code == ReasonCode.ADVISE_THRESHOLD.value


def test_a_record_has_the_settings_that_count():
    policy = RegionPolicy(keep_ratio=0.5, focus=torch.ones(1, 8, 8))
    record = policy.to_record()
    assert set(record) == {f.name for f in fields(policy)} - {"focus", "kv"} | {
        "technique",
        "mask",
        "kv_cache",
    }
    assert record["mask"] is True and record["kv_cache"] == "predict"
    left = set(record) - set(BY_ERROR.to_record())
    assert left == {"metric", "direction", "starvation", "slope"}
    assert policy.percents == (0.0, 1.0)
