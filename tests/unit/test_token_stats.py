"""What is known of each image token during a run, and the region policy on it."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rapid_core.engine.history import History
from rapid_core.engine.token_stats import TokenStats, stats_of_run
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
    actor, grid = policy.start(Window(1, 0)), TokenGrid((4, 16, 16))
    generator = torch.Generator().manual_seed(seed)
    may_run = torch.randperm(NUMBER, generator=generator) < selectable
    focus = (torch.rand(NUMBER, generator=generator) < 0.5).float()
    stats = TokenStats(grid, may_run, focus if painted else None)
    scale = torch.rand(4, 16, 16, generator=generator) * 10  # some places always matter more
    latest, longest, fewest = torch.randn(4, 16, 16, generator=generator) * scale, 0.0, selectable
    stats.computed(FULL, latest, None)
    for step in range(100):
        track = History(1)
        track.add(0.5, latest)
        state = stats.state(track)
        action = actor.act(
            Observation(
                step,
                0.5,
                step=step,
                steps=100,
                computed=step,
                since_full=stats.since_full,
                tokens=state,
            )
        )
        new = torch.randn(4, 16, 16, generator=generator) * scale
        stats.computed(action, new, latest)
        if action.tokens is not None:
            latest, fewest = (
                torch.where(grid.mask(action.tokens), new, latest),
                min(fewest, len(action.tokens)),
            )
        longest = max(longest, stats.age[may_run].max().item())
    least = ratio if not slope else max(ratio * (1 - abs(slope)), 4 / selectable)
    assert longest <= starving_age(min(1.0, least)) + math.ceil(selectable / fewest)


def run_by_error(threshold, ratio, seed, may_run=None):
    """60 evaluations by error estimates: (action, state before, stats after) of each. may_run (N,): see
    TokenState."""
    policy = replace(per_token_error(threshold, ratio), tail=0.0)
    actor, grid, track = policy.start(Window(1, 0)), TokenGrid((4, 16, 16)), History(3)
    stats = TokenStats(grid, may_run, None, threshold, MAX_AGE)
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(16, 16, generator=generator) ** 4  # some places are much rougher than others
    skipped = -1
    for step in range(60):
        sigma = 1 - step / 60
        over = stats.accumulate(track.points, torch.tensor(sigma), 1, 4.0, torch.tensor(1.0))
        state = stats.state(track, [] if over[0] < 0 else [int(number) for number in over])
        action = actor.act(
            Observation(
                step,
                sigma,
                step=step,
                steps=100,
                computed=step,
                since_computed=skipped,
                since_full=stats.since_full,
                tokens=state,
            )
        )
        if action.mode is Mode.SKIP:
            skipped += 1
            stats.passed_over()
        else:
            skipped, new, points = (
                0,
                1 + scale * torch.randn(4, 16, 16, generator=generator),
                track.points,
            )
            stats.computed(action, new, points[-1].value if points else None)
            track.add(sigma, new, None if action.tokens is None else grid.mask(action.tokens))
        yield action, state, stats


@settings(max_examples=25)
@given(st.floats(0.001, 3.0), st.floats(0.1, 0.9), st.integers(0, 1000))
def test_tokens_with_errors_of_their_own_are_never_late(threshold, ratio, seed):
    """By error_threshold every token over it is computed with the others; few wait two evaluations
    at most."""
    for action, state, stats in run_by_error(threshold, ratio, seed):
        assert stats.age.max() <= MAX_AGE + MAX_WAIT
        if action.tokens is not None:
            left = torch.ones(NUMBER, dtype=torch.bool).index_fill(0, action.tokens, False)
            assert (state.error[left] < threshold).all() and len(
                action.tokens
            ) <= ratio * NUMBER + 4


@settings(max_examples=25)
@given(st.floats(0.001, 3.0), st.floats(0.1, 0.9), st.integers(0, NUMBER - 1), st.integers(0, 1000))
def test_tokens_that_a_mask_keeps_are_not_forgotten_by_error_estimates(
    threshold, ratio, selectable, seed
):
    may_run = torch.randperm(NUMBER, generator=torch.Generator().manual_seed(seed)) < selectable
    for _, _, stats in run_by_error(threshold, ratio, seed, may_run):
        assert stats.age.max() <= MAX_MASKED_AGE
        assert not selectable or stats.age[may_run].max() <= MAX_AGE + MAX_WAIT


@pytest.mark.parametrize(
    "told", [torch.tensor(0.7), torch.tensor(0.7).double(), torch.tensor(0.7, dtype=torch.float64)]
)
@pytest.mark.parametrize("partial", [False, True])
def test_a_second_look_at_a_sigma_goes_by_what_changed(told, partial):
    """heun computes a sigma twice; there both predictions agree, and only the latent says what
    changed. What is told in double precision is remembered in single."""
    grid, track = TokenGrid((4, 16, 16)), History(3)
    stats = TokenStats(grid, None, None, 0.1, MAX_AGE)
    *before, last = torch.tensor((1.0, 0.9, 0.8, 0.7)).tolist()
    for sigma in before:
        stats.computed(FULL, torch.ones(4, 16, 16), None)
        track.add(sigma, torch.ones(4, 16, 16))
    ran = torch.ones(1, 16, 16, dtype=torch.bool) if partial else None
    track.add(last, torch.ones(4, 16, 16), ran)
    changed = torch.zeros(4, 16, 16)
    changed[:, :2, :2] = 0.5
    changed[:, :2, 2:4] = 0.07

    def look(changed):
        return stats.accumulate(track.points, told, 1, 4.0, torch.tensor(1.0), changed)

    assert (look(None).tolist(), look(changed).tolist()) == ([0, 0], [1, 2])


def test_masks_are_of_the_images_of_a_batch_or_of_the_frames_of_a_video():
    masks = torch.stack((torch.zeros(5, 7), torch.ones(5, 7)))

    def painted(grid, batch, masks):
        """Focus of each image, (batch, N)."""
        return torch.stack([stats.focus for stats in stats_of_run(grid, batch, None, masks)])

    assert painted(TokenGrid((4, 8, 8)), 3, masks).mean(1).tolist() == [0, 1, 0]
    video = TokenGrid((4, 4, 8, 8))
    for focus in painted(video, 2, masks):
        assert focus.view(4, 16).mean(1).tolist() == [0, 0, 1, 1]
    # Other numbers of frames are scaled to the latent's.
    long = torch.linspace(0, 1, 9)[:, None, None].expand(9, 5, 7)
    means = painted(video, 2, long)[0].view(4, 16).mean(1)
    assert (means.diff() > 0.1).all()
    assert painted(video, 2, masks[1:]).min() == 1
    alone = painted(TokenGrid((4, 1, 8, 8)), 2, masks)
    assert alone.mean(1).tolist() == [0, 1]  # pictures of a model that has frames


def test_of_video_and_sound_in_one_latent_tokens_are_the_videos_and_all_of_the_sound_is_computed():
    grid = TokenGrid((3, 2, 4, 6), 2, beside=5)
    latent = torch.arange(3.0 * 2 * 4 * 6 + 5)[None]
    assert grid.latent == tuple(latent.shape) and grid.number == 12
    video = grid.video(latent)
    assert video.shape == grid.shape and torch.equal(grid.with_video(latent, video), latent)
    other = grid.with_video(latent, video * 0)
    assert not other[0, :-5].any() and torch.equal(other[0, -5:], latent[0, -5:])
    mask = grid.latent_mask(torch.tensor([0, 7]))
    assert mask.shape == latent.shape and mask[0, -5:].all()
    assert torch.equal(grid.video(mask), grid.mask(torch.tensor([0, 7])).expand(grid.shape))
    alone = TokenGrid((3, 4, 6), 2)
    assert alone.latent == alone.shape and alone.latent_mask(torch.tensor([1])).shape == (1, 4, 6)
    assert alone.with_video(latent, video) is video


def test_where_the_sound_is_wrong_everything_is_computed_however_right_the_video():
    grid = TokenGrid((2, 1, 4, 4), 2, beside=8)
    stats = TokenStats(grid, error_threshold=0.1, max_age=100)
    history = History(3)
    rough = torch.zeros(1, 40)
    rough[0, 32:] = 0.01  # beside the video it is next to nothing
    for turn, sigma in enumerate((1.0, 0.9, 0.8)):
        derivative = torch.ones(1, 40) * 10
        derivative[0, 32:] = 0.01
        derivative = derivative + rough * (-1) ** turn
        before = history.points[-1].value if history.points else None
        history.add(sigma, derivative)
        stats.computed(FULL, derivative, before)

    def over(weight=1.0):
        sigma = torch.tensor(0.7)
        return stats.accumulate(history.points, sigma, 1, None, torch.tensor(weight)).tolist()

    assert over() == [4, 4]
    assert over(0.0) == [0, 0]
    assert over(1e-3) == [0, 0]
    stats.passed_over()  # what was passed over adds up
    assert stats.sound > 0
    stats.computed(FULL, history.points[-1].value, None)
    assert over(0.0) == [0, 0]
