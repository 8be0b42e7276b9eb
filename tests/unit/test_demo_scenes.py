"""Drawn scenes: splits, determinism, sizes, and the colour rules that read them back."""

import json

import pytest
import torch
from safetensors import safe_open

from demo import critic, judge, rules, scenes
from demo.pack.words import COLOURS, MAX_OBJECTS, SHAPES, TEXTURES


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def combinations(chosen: scenes.Scenes) -> torch.Tensor:
    """Split of the combination of each object that is drawn, (B, 6); -1 where there is none."""
    split = scenes.combination_split()[chosen.colour, chosen.texture, chosen.shape]
    return torch.where(torch.arange(MAX_OBJECTS) < chosen.count[:, None], split, -1)


def test_a_tenth_of_the_combinations_is_held_out_for_dev_and_test_each():
    split = scenes.combination_split()
    number = len(COLOURS) * len(TEXTURES) * len(SHAPES)
    assert split.shape == (len(COLOURS), len(TEXTURES), len(SHAPES))
    assert [int((split == s).sum()) for s in range(3)] == [number - 2 * (number // 10)] + 2 * [
        number // 10
    ]


def test_training_scenes_hold_no_held_out_combination():
    assert combinations(scenes.sample(2000, generator())).max() == 0


@pytest.mark.parametrize(("split", "own", "other"), [("dev", 1, 2), ("test", 2, 1)])
def test_held_out_scenes_hold_their_own_combinations_and_none_of_the_other_split(split, own, other):
    seen = combinations(scenes.sample(2000, generator(), split))
    assert not (seen == other).any()
    with_objects = seen[:, 0] >= 0
    assert (seen[with_objects, 0] == own).float().mean() > 0.8


def test_scenes_are_empty_and_crowded_and_objects_never_have_the_colour_of_the_background():
    chosen = scenes.sample(2000, generator())
    assert set(chosen.count.tolist()) == set(range(MAX_OBJECTS + 1))
    assert (chosen.colour != chosen.ground_colour[:, None]).all()


@pytest.mark.parametrize(("height", "width"), [(128, 128), (96, 160)])
def test_the_same_generator_draws_the_same_pictures_of_the_size_asked(height, width):
    chosen = scenes.sample(6, generator())
    first, second = (scenes.draw(chosen, height, width, generator(3)) for _ in range(2))
    assert first.shape == (6, 3, height, width)
    assert torch.equal(first, second)
    assert 0 <= first.min() and first.max() <= 1
    assert not torch.equal(first, scenes.draw(chosen, height, width, generator(4)))


def test_no_scenes_give_no_pictures_and_an_empty_scene_is_its_background():
    chosen = scenes.sample(200, generator())
    empty = chosen.take(chosen.count == 0)
    pictures = scenes.draw(empty, 64, 64, generator())
    objects, grounds = rules.colours_right(pictures, empty)
    assert len(objects) == 0 and len(grounds) == len(empty) and grounds.all()


@pytest.mark.parametrize("size", [128, 256])
def test_colour_rules_and_judge_read_true_scenes(size):
    chosen = scenes.sample(48, generator(1), "dev")
    pictures = scenes.draw(chosen, size, size, generator(1))
    objects, grounds = rules.colours_right(pictures, chosen)
    assert objects.float().mean() >= 0.99 and grounds.float().mean() >= 0.99
    named, index = judge.shapes(judge.load(), pictures, chosen)
    assert (named == chosen.shape[index[:, 0], index[:, 1]]).float().mean() >= 0.97


def test_colour_rules_notice_wrong_colours():
    chosen = scenes.sample(24, generator(1))
    pictures = scenes.draw(chosen, 128, 128, generator(1))
    objects, grounds = rules.colours_right(pictures.roll(1, 0), chosen)
    assert objects.float().mean() < 0.4 and grounds.float().mean() < 0.4


def test_regions_without_objects_touch_no_object():
    chosen = scenes.sample(300, generator())
    gaps, (objects, _) = (
        judge.Regions.of_gaps(chosen, generator()),
        judge.Regions.of_objects(chosen),
    )
    assert len(gaps.row) > 100
    for row, centre in zip(gaps.row.tolist(), gaps.centre, strict=True):
        others = objects.centre[objects.row == row]
        assert ((others - centre).abs().amax(1) > 0.3).all()


@pytest.mark.parametrize("size", [(128, 128), (128, 256)])
def test_crops_are_bilinear_and_repeat_the_edge(size):
    chosen = scenes.sample(4, generator(2))
    pictures = scenes.draw(chosen, *size, generator(2))
    regions = judge.Regions.of_places(len(chosen)).jitter(generator(2))
    made = regions.crops(pictures)
    for i in range(0, len(regions.row), 5):
        step = (torch.arange(judge.SIDE) + 0.5) / judge.SIDE * 2 - 1
        reach = regions.half[i] * min(size) * step
        picture = pictures[regions.row[i]]
        for axis, side, centre in ((1, size[0], 1), (2, size[1], 0)):
            place = (regions.centre[i, centre] * side + reach - 0.5).clamp(0, side - 1)
            low = place.floor().long()
            high = (low + 1).clamp_max(side - 1)
            weight = (place - low)[:, None] if axis == 1 else place - low
            picture = torch.lerp(
                picture.index_select(axis, low), picture.index_select(axis, high), weight
            )
        assert (made[i] - picture).abs().max() < 2e-5


@pytest.mark.parametrize("path", [judge.WEIGHTS, critic.WEIGHTS], ids=lambda path: path.stem)
def test_a_judge_is_as_right_as_it_was_when_it_was_made(path):
    with safe_open(path, framework="pt") as file:
        made = json.loads(file.metadata()["accuracy_dev"])
    assert judge.accuracy(judge.load(path), 128, kind=0) == made["true_128"]
