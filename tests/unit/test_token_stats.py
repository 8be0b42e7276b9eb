"""What is known of each image token during a run, and the region policy on it."""

import math
from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rapid_core.engine.history import History
from rapid_core.engine.token_stats import TokenStats
from rapid_core.techniques.region.policy import (
    MAX_AGE,
    MAX_MASKED_AGE,
    MAX_WAIT,
    RegionPolicy,
)
from rapid_core.techniques.region.presets import per_token_error
from rapid_core.techniques.region.priority import starving_age
from rapid_core.token_grid import TokenGrid
from rapid_core.types import FULL, Mode, Observation, Window

ROWS, COLUMNS = 8, 8
NUMBER = ROWS * COLUMNS


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
        keep_ratio=ratio,
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
        action = actor.act(
            Observation(
                step,
                0.5,
                step=step,
                steps=100,
                computed=step,
                since_full=regions.since_dense[0],
                tokens=state,
            )
        )
        new = torch.randn(4, 16, 16, generator=generator) * scale
        regions.remember(0, action, new, latest)
        if action.tokens is not None:
            latest, fewest = (
                torch.where(grid.mask(action.tokens), new, latest),
                min(fewest, len(action.tokens)),
            )
        longest = max(longest, regions.age[0][wanted].max().item())
    least = ratio if not slope else max(ratio * (1 - abs(slope)), 4 / free)
    assert longest <= starving_age(min(1.0, least)) + math.ceil(free / fewest)


def clocked(threshold, ratio, seed, wanted=None):
    """60 evaluations by error estimates: (action, state before, regions after) of each. wanted (N,): see
    TokenState."""
    policy = replace(per_token_error(threshold, ratio), tail=0.0)
    actor, grid, track = policy.start(Window(1, 0)), TokenGrid((4, 16, 16)), History(3)
    regions = TokenStats(
        grid, 1, None if wanted is None else wanted[None], None, threshold, MAX_AGE
    )
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(16, 16, generator=generator) ** 4  # some places are much rougher than others
    skipped = -1
    for step in range(60):
        sigma = 1 - step / 60
        due = regions.expect(0, track.points(0), torch.tensor(sigma), 1, 4.0, torch.tensor(1.0))
        state = regions.state(0, track, None if due < 0 else int(due))
        action = actor.act(
            Observation(
                step,
                sigma,
                step=step,
                steps=100,
                computed=step,
                since_computed=skipped,
                since_full=regions.since_dense[0],
                tokens=state,
            )
        )
        if action.mode is Mode.SKIP:
            skipped += 1
            regions.pass_over(0)
        else:
            skipped, new, points = (
                0,
                1 + scale * torch.randn(4, 16, 16, generator=generator),
                track.points(0),
            )
            regions.remember(0, action, new, points[-1].value if points else None)
            track.add(0, sigma, new, None if action.tokens is None else grid.mask(action.tokens))
        yield action, state, regions


@settings(max_examples=25)
@given(st.floats(0.001, 3.0), st.floats(0.1, 0.9), st.integers(0, 1000))
def test_tokens_with_errors_of_their_own_are_never_late(threshold, ratio, seed):
    """By error_threshold every token over it is computed at once; fewer than a block wait two
    evaluations at most."""
    for action, state, regions in clocked(threshold, ratio, seed):
        assert regions.age[0].max() <= MAX_AGE + MAX_WAIT
        if action.tokens is not None:
            left = torch.ones(NUMBER, dtype=torch.bool).index_fill(0, action.tokens, False)
            assert (state.error[left] < threshold).all() and len(
                action.tokens
            ) <= ratio * NUMBER + 4


@settings(max_examples=25)
@given(st.floats(0.001, 3.0), st.floats(0.1, 0.9), st.integers(0, NUMBER - 1), st.integers(0, 1000))
def test_tokens_that_a_mask_keeps_are_not_forgotten_by_error_estimates(
    threshold, ratio, free, seed
):
    wanted = torch.randperm(NUMBER, generator=torch.Generator().manual_seed(seed)) < free
    for _, _, regions in clocked(threshold, ratio, seed, wanted):
        assert regions.age[0].max() <= MAX_MASKED_AGE
        assert not free or regions.age[0][wanted].max() <= MAX_AGE + MAX_WAIT


def test_a_second_look_at_a_sigma_goes_by_what_moved():
    """heun computes a sigma twice; there both predictions agree, and only the latent says what
    changed."""
    grid, track = TokenGrid((4, 16, 16)), History(3)
    regions = TokenStats(grid, 1, None, None, 0.1, MAX_AGE)
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
