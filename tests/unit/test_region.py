"""The region policy: which tokens are chosen, how many, and that none waits for ever."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rapid_core.engine.history import History
from rapid_core.engine.token_stats import TokenStats
from rapid_core.techniques.region.policy import (
    DUE_AGE,
    KEPT_AGE,
    WAIT,
    RegionPolicy,
    metric,
    oldest,
    paper,
    rounded,
)
from rapid_core.token_grid import TokenGrid
from rapid_core.types import FULL, ImageState, Mode, Observation, TokenState, Window

ROWS, COLUMNS = 8, 8
NUMBER = ROWS * COLUMNS


def tokens(derivative=None, age=None, **more):
    if derivative is None:
        derivative = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(0))
    age = torch.zeros(NUMBER) if age is None else age
    return TokenState(
        (1, ROWS, COLUMNS), age, derivative, torch.ones(NUMBER), more.pop("free", NUMBER), **more
    )


def chosen(policy, state, step=10, steps=20, since_dense=1, measured=None):
    image = ImageState(5, 0, math.inf, measured, since_dense, state)
    (action,) = policy.start(Window(1, 0)).act(
        Observation(step, 1 - step / steps, (image,), step, steps)
    )
    return None if action.tokens is None else action.tokens.tolist()


def spread_by_token(values):
    """A derivative whose channels differ by `values` at each token."""
    grid = TokenGrid((2, 16, 16))
    pixels = grid.to_pixels(torch.tensor(values, dtype=torch.float32))
    return torch.stack((pixels, -pixels))


def test_low_direction_takes_the_tokens_with_the_smallest_spread():
    values = [1.0 + i for i in range(NUMBER)]
    state = tokens(spread_by_token(values))
    assert chosen(RegionPolicy(0.25, metric="std", direction="low", starvation=0), state) == list(
        range(16)
    )
    assert chosen(RegionPolicy(0.25, metric="std", starvation=0, direction="high"), state) == list(
        range(48, 64)
    )


def test_a_neglected_token_rises_whatever_the_direction():
    values = [1.0 + i for i in range(NUMBER)]
    for direction, worst in (("low", 63), ("high", 0)):
        age = torch.zeros(NUMBER)
        age[worst] = 6
        policy = RegionPolicy(0.25, metric="std", starvation=1.0, direction=direction)
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
    ratio, name, direction, starvation, slope, free, painted, seed
):
    policy = RegionPolicy(
        ratio,
        warm_up=0.0,
        tail=0.0,
        refresh_interval=0,
        metric=name,
        direction=direction,
        starvation=starvation,
        slope=slope,
    )
    actor, grid = policy.start(Window(1, 0)), TokenGrid((4, 16, 16))
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.randperm(NUMBER, generator=generator) < free
    focus = (torch.rand(NUMBER, generator=generator) < 0.5).float()
    regions = TokenStats(grid, 1, wanted[None], focus[None] if painted else None)
    scale = torch.rand(4, 16, 16, generator=generator) * 10  # some places always matter more
    latest, longest, fewest = torch.randn(4, 16, 16, generator=generator) * scale, 0.0, free
    regions.remember(0, FULL, latest, None)
    for step in range(100):
        track = History(1)
        track.add(0, 0.5, latest)
        state = regions.state(0, track)
        image = ImageState(step, 0, math.inf, None, regions.since_dense[0], state)
        (action,) = actor.act(Observation(step, 0.5, (image,), step, 100))
        new = torch.randn(4, 16, 16, generator=generator) * scale
        regions.remember(0, action, new, latest)
        if action.tokens is not None:
            latest, fewest = (
                torch.where(grid.mask(action.tokens), new, latest),
                min(fewest, len(action.tokens)),
            )
        longest = max(longest, regions.age[0][wanted].max().item())
    least = ratio if not slope else max(ratio * (1 - abs(slope)), 4 / free)
    assert longest <= oldest(min(1.0, least)) + math.ceil(free / fewest)


def test_the_bound_follows_the_smallest_share_of_a_slope():
    state = tokens(age=torch.full((NUMBER,), 4.0))
    assert RegionPolicy(0.5).least(state) == 0.5
    assert (
        RegionPolicy(0.5, slope=0.5).least(state)
        == RegionPolicy(0.5, slope=-0.5).least(state)
        == 0.25
    )
    assert RegionPolicy(0.5, slope=1.0).least(state) == 4 / NUMBER


def clocked(threshold, ratio, seed, wanted=None):
    """60 evaluations by clocks: (action, state before, regions after) of each. wanted (N,): see
    TokenState."""
    policy = RegionPolicy(
        ratio, warm_up=0.0, tail=0.0, refresh_interval=0, error_threshold=threshold
    )
    actor, grid, track = policy.start(Window(1, 0)), TokenGrid((4, 16, 16)), History(3)
    regions = TokenStats(grid, 1, None if wanted is None else wanted[None], None, *policy.due)
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(16, 16, generator=generator) ** 4  # some places are much rougher than others
    held = -1
    for step in range(60):
        sigma = 1 - step / 60
        due = regions.expect(0, track.points(0), torch.tensor(sigma), 1, 4.0, torch.tensor(1.0))
        state = regions.state(0, track, None if due < 0 else int(due))
        image = ImageState(step, held, math.inf, None, regions.since_dense[0], state)
        (action,) = actor.act(Observation(step, sigma, (image,), step, 100))
        if action.level is Mode.SKIP:
            held += 1
            regions.pass_over(0)
        else:
            held, new, points = (
                0,
                1 + scale * torch.randn(4, 16, 16, generator=generator),
                track.points(0),
            )
            regions.remember(0, action, new, points[-1].value if points else None)
            track.add(0, sigma, new, None if action.tokens is None else grid.mask(action.tokens))
        yield action, state, regions


@settings(max_examples=25)
@given(st.floats(0.001, 3.0), st.floats(0.1, 0.9), st.integers(0, 1000))
def test_tokens_with_clocks_of_their_own_are_never_late(threshold, ratio, seed):
    """By error_threshold every due token is computed at once; fewer than a block wait two
    evaluations at most."""
    for action, state, regions in clocked(threshold, ratio, seed):
        assert regions.age[0].max() <= DUE_AGE + WAIT
        if action.tokens is not None:
            left = torch.ones(NUMBER, dtype=torch.bool).index_fill(0, action.tokens, False)
            assert (state.drift[left] < threshold).all() and len(
                action.tokens
            ) <= ratio * NUMBER + 4


@settings(max_examples=25)
@given(st.floats(0.001, 3.0), st.floats(0.1, 0.9), st.integers(0, NUMBER - 1), st.integers(0, 1000))
def test_tokens_that_a_mask_keeps_are_not_forgotten_by_clocks(threshold, ratio, free, seed):
    wanted = torch.randperm(NUMBER, generator=torch.Generator().manual_seed(seed)) < free
    for _, _, regions in clocked(threshold, ratio, seed, wanted):
        assert regions.age[0].max() <= KEPT_AGE
        assert not free or regions.age[0][wanted].max() <= DUE_AGE + WAIT


def test_a_second_look_at_a_level_is_due_by_what_moved():
    """heun computes a level twice; there both forecasts agree, and only the latent says what
    changed."""
    grid, track = TokenGrid((4, 16, 16)), History(3)
    regions = TokenStats(grid, 1, None, None, 0.1, DUE_AGE)
    for sigma in (0.9, 0.8, 0.7):
        regions.remember(0, FULL, torch.ones(4, 16, 16), None)
        track.add(0, sigma, torch.ones(4, 16, 16))
    moved = torch.zeros(4, 16, 16)
    moved[:, :2, :2] = 0.5

    def look(moved):
        return regions.expect(
            0, track.points(0), torch.tensor(0.7), 1, 4.0, torch.tensor(1.0), moved
        )

    assert (look(None), look(moved)) == (0, 1)


def test_few_due_tokens_wait_and_many_are_all():
    drift = torch.arange(NUMBER) / NUMBER
    policy = RegionPolicy(0.5, warm_up=0.0, tail=0.0, refresh_interval=0, error_threshold=0.1)

    def act(due, since):
        return policy.start(Window(1, 0)).act(
            Observation(
                10,
                0.5,
                (ImageState(5, since, math.inf, None, 1, tokens(drift=drift, due=due)),),
                10,
                20,
            )
        )[0]

    assert act(0, 0).level is act(3, 1).level is Mode.SKIP
    assert act(3, 2).tokens.tolist() == [60, 61, 62, 63]
    assert act(5, 0).tokens.tolist() == list(range(56, 64))
    assert act(33, 0).dense and act(None, 0).dense


def test_warm_up_and_tail_are_shares_of_the_steps():
    policy, state = RegionPolicy(0.5, warm_up=0.2, tail=0.1, refresh_interval=0), tokens()
    dense = [chosen(policy, state, step, 20) is None for step in range(20)]
    assert dense == [True] * 4 + [False] * 14 + [True] * 2


def test_the_first_look_after_nothing_is_dense():
    assert chosen(RegionPolicy(0.5), tokens(), since_dense=-1) is None


def test_refreshes_come_after_the_interval_and_with_drift():
    policy = RegionPolicy(0.5, refresh_interval=3, drift_threshold=0.2)
    assert chosen(policy, tokens(), since_dense=2) is not None
    assert chosen(policy, tokens(), since_dense=3) is None
    assert chosen(policy, tokens(), measured=0.3) is None
    assert chosen(policy, tokens(), measured=0.1) is not None


def test_the_papers_schedules():
    def dense(family, steps):
        policy, since, out = paper(family, 0.5), -1, []
        for step in range(steps):
            whole = chosen(policy, tokens(), step, steps, since) is None
            since = 0 if whole else since + 1
            out += [step] if whole else []
        return out

    assert dense("sd3", 28) == [0, 1, 2, 3, 12, 20]
    assert dense("lumina2", 30) == [0, 1, 2, 3, 12, 22]


def test_the_papers_share_falls_on_lumina_and_is_constant_on_sd3():
    def shares(family, steps):
        policy = paper(family, 0.5)
        counts = (chosen(policy, tokens(), step, steps) for step in range(steps))
        return [len(c) / NUMBER for c in counts if c is not None]

    for family in ("lumina2", "z_image"):
        found = shares(family, 30)
        assert (found[0], found[-1]) == (0.6875, 0.3125) and found == sorted(found, reverse=True)
        assert sum(found) / len(found) == pytest.approx(0.5, abs=0.02)
    assert set(shares("sd3", 28)) == {0.5}


def test_a_slope_gives_more_tokens_early_or_late():
    for slope in (0.5, -0.5):
        policy = RegionPolicy(0.5, warm_up=0.0, tail=0.0, slope=slope)
        counts = [len(chosen(policy, tokens(), step, 20)) for step in range(20)]
        assert (counts[0] > counts[-1]) == (slope > 0)
        assert sum(counts) / 20 == pytest.approx(32, abs=2)


def test_counts_are_whole_blocks_and_at_least_one():
    assert [rounded(c, 4096) for c in (1, 100, 2047)] == [64, 128, 2048]
    assert rounded(0.5, 64) == 4 and rounded(9999, 64) == 64


def test_kept_tokens_are_never_chosen_and_the_users_mask_comes_first():
    wanted = torch.arange(NUMBER) < 40
    assert max(chosen(RegionPolicy(0.5), tokens(wanted=wanted, free=40))) < 40
    frames = TokenState(
        (4, 4, 4),
        torch.zeros(NUMBER),
        torch.randn(4, 4, 8, 8),
        torch.ones(NUMBER),
        40,
        wanted=wanted,
    )
    assert max(chosen(RegionPolicy(0.5), frames)) < 40  # the last frames are kept as they are
    focus = (torch.arange(NUMBER) >= 50).float()
    assert set(range(50, 64)) <= set(chosen(RegionPolicy(0.25), tokens(focus=focus)))


def test_frames_share_what_a_mask_leaves_to_choose():
    def of_frames(wanted, ratio):
        derivative = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        derivative[:, 3] *= 100  # the last frame always matters most
        state = TokenState(
            (4, 4, 4),
            torch.zeros(NUMBER),
            derivative,
            torch.ones(NUMBER),
            NUMBER if wanted is None else int(wanted.sum()),
            wanted=wanted,
        )
        ran = chosen(RegionPolicy(ratio, metric="std"), state)
        assert len(set(ran)) == len(ran) and (wanted is None or wanted[ran].all())
        return [sum(t // 16 == frame for t in ran) for frame in range(4)]

    assert of_frames(None, 0.25) == [4, 4, 4, 4]
    wanted = torch.ones(4, 16, dtype=torch.bool)
    wanted[0] = False  # given, as the first frame of image to video
    assert of_frames(wanted.flatten(), 0.5) == [0, 8, 8, 8]
    wanted[1, 2:] = False  # two of the second frame: what it leaves goes where it matters most
    assert of_frames(wanted.flatten(), 0.5) == [0, 2, 5, 9]


def test_masks_are_of_the_images_of_a_batch_or_of_the_frames_of_a_video():
    masks = torch.stack((torch.zeros(5, 7), torch.ones(5, 7)))
    pictures = TokenStats.of_run(TokenGrid((4, 8, 8)), torch.zeros(3, 4, 8, 8), None, masks).focus
    assert pictures.mean(1).tolist() == [0, 1, 0]
    grid, noise = TokenGrid((4, 4, 8, 8)), torch.zeros(2, 4, 4, 8, 8)
    for focus in TokenStats.of_run(grid, noise, None, masks).focus:
        assert focus.view(4, 16).mean(1).tolist() == [0, 0, 1, 1]
    long = torch.linspace(0, 1, 9)[:, None, None].expand(
        9, 5, 7
    )  # other numbers of frames are scaled to the latent's
    means = TokenStats.of_run(grid, noise, None, long).focus[0].view(4, 16).mean(1)
    assert (means.diff() > 0.1).all()
    assert TokenStats.of_run(grid, noise, None, masks[1:]).focus.min() == 1
    alone = TokenStats.of_run(
        TokenGrid((4, 1, 8, 8)), torch.zeros(2, 4, 1, 8, 8), None, masks
    ).focus
    assert alone.mean(1).tolist() == [0, 1]  # pictures of a model that has frames


def test_where_less_than_a_block_may_change_nothing_else_is_computed():
    wanted, drift = torch.arange(NUMBER) < 3, torch.ones(NUMBER)
    per_token_error = RegionPolicy(
        1.0, warm_up=0.0, tail=0.0, refresh_interval=0, error_threshold=0.1
    )
    for policy in (RegionPolicy(0.5), per_token_error):
        state = tokens(wanted=wanted, free=3, drift=drift, due=2)
        image = ImageState(5, WAIT, math.inf, None, 1, state)
        (action,) = policy.start(Window(1, 0)).act(Observation(10, 0.5, (image,), 10, 20))
        assert action.tokens.tolist() == [0, 1, 2]
        nothing = tokens(wanted=torch.zeros(NUMBER, dtype=torch.bool), free=0, drift=drift, due=0)
        image = ImageState(5, WAIT, math.inf, None, 1, nothing)
        assert (
            policy.start(Window(1, 0)).act(Observation(10, 0.5, (image,), 10, 20))[0].level
            is Mode.SKIP
        )


def test_where_a_mask_leaves_few_tokens_and_many_are_due_only_these_are_computed():
    wanted = torch.arange(NUMBER) < 10
    policy = RegionPolicy(0.5, warm_up=0.0, tail=0.0, refresh_interval=0, error_threshold=0.1)
    for since_dense, all_of_them in ((1, False), (KEPT_AGE, True)):
        state = tokens(wanted=wanted, free=10, drift=torch.ones(NUMBER), due=10)
        image = ImageState(5, 0, math.inf, None, since_dense, state)
        (action,) = policy.start(Window(1, 0)).act(Observation(10, 0.5, (image,), 10, 20))
        assert action.dense if all_of_them else action.tokens.tolist() == list(range(10))


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
        assert metric(name, state).nonzero().flatten().tolist() == [
            64 * frame + 9 for frame in range(frames)
        ]


def test_the_metrics_are_means_over_a_tokens_pixels():
    state = tokens()
    by_hand = state.derivative.reshape(4, 8, 2, 8, 2)
    assert torch.allclose(metric("std", state).view(8, 8), by_hand.std(0).mean((1, 3)), atol=1e-6)
    assert torch.allclose(
        metric("l2", state).view(8, 8), by_hand.norm(dim=0).mean((1, 3)), atol=1e-6
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
