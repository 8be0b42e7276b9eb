"""The picture of a record."""

from dataclasses import replace

import torch

from rapid_core.heatmap import SCALE, STRIP, coloured, computed_share, draw
from rapid_core.record import EvaluationRecord, RunRecord, pack, unpack


def record(*shares_and_tokens, grid=(1, 2, 3)):
    def one(i, mode, share, tokens):
        return EvaluationRecord(
            i, 1.0, 0, (mode,), (share,), (1.0,), (1.0,), (None,), (None,), (), (tokens,)
        )

    evaluations = tuple(one(i, *each) for i, each in enumerate(shares_and_tokens))
    return RunRecord("euler", "flux", (1, 16, 4, 6), (1.0, 0.0), (), evaluations, 1.0, 0, grid=grid)


def test_bit_sets_come_back():
    assert unpack(pack([0, 7, 8, 12], 13)) == [0, 7, 8, 12]


def test_tokens_are_counted_where_they_ran():
    run = record(
        ("run", 1.0, None),
        ("run", 0.5, pack([0, 4, 5], 6)),
        ("skip", 0.0, None),
        ("run", 1.0, None),
    )
    assert torch.allclose(
        computed_share(run, 0), torch.tensor([[0.75, 0.5, 0.5], [0.5, 0.75, 0.75]])
    )


def test_the_map_lies_over_the_picture_with_a_strip_below():
    run = record(("run", 1.0, None), ("skip", 0.0, None))
    image = draw(run, torch.rand(1, 32, 48, 3))
    assert image.shape == (1, 32 + STRIP, 48, 3)
    assert (
        torch.allclose(image[0, -1, 1], coloured(torch.tensor(1.0))) and image[0, -1, -1].sum() == 0
    )
    assert draw(run).shape == (1, 256 + STRIP, 384, 3)


def test_a_place_has_the_colour_of_how_often_its_token_ran():
    image = draw(record(("run", 1.0, None), ("run", 0.5, pack([0, 1, 2], 6))))
    assert torch.allclose(image[0, 64, 192], SCALE[-1])  # a token of the upper row: always
    assert torch.allclose(
        image[0, 192, 192], torch.lerp(SCALE[1], SCALE[2], 0.5)
    )  # one below it: every second time


def test_where_nobody_chose_tokens_there_is_the_strip_alone():
    run = replace(record(("run", 1.0, None), ("skip", 0.0, None)), grid=None)
    image = draw(run, torch.rand(1, 1024, 1024, 3))
    assert image.shape == (1, STRIP, 256, 3)
    assert (
        torch.allclose(image[0, -1, 1], coloured(torch.tensor(1.0))) and image[0, -1, -1].sum() == 0
    )
