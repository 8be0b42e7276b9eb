"""The training judge: prompts read back, and its place beside the judge that scores."""

import pytest
import torch

from demo import critic, judge, scenes
from demo.pack.words import MAX_OBJECTS


def test_prompts_are_read_back_as_the_scenes_they_describe():
    chosen = scenes.sample(300, torch.Generator().manual_seed(0))
    found = critic.read(chosen.prompts())
    assert found.prompts() == chosen.prompts()
    there = torch.arange(MAX_OBJECTS) < chosen.count[:, None]
    for name in ("colour", "shape", "texture", "size", "place"):
        assert torch.equal(getattr(found, name)[there], getattr(chosen, name)[there])
    for name in ("count", "ground", "ground_colour"):
        assert torch.equal(getattr(found, name), getattr(chosen, name))


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a cat",
        "flat red background, big blue circle",
        "big blue plain circle top",
        "flat red background,",
        "flat red background" + ", big blue plain circle top" * 7,
    ],
)
def test_other_prompts_are_refused_with_an_example(prompt):
    with pytest.raises(
        ValueError,
        match="is not a prompt of the demo's scenes; these read 'flat red background, big",
    ):
        critic.read([prompt])


def test_the_judge_that_trains_is_another_network_than_the_judge_that_scores():
    scoring, training = judge.load(), judge.load(critic.WEIGHTS)
    assert critic.WEIGHTS != judge.WEIGHTS
    assert training.head.in_features != scoring.head.in_features


@pytest.mark.parametrize("size", [128, 256])
def test_it_is_sure_of_true_scenes_and_not_of_other_pictures(size):
    chosen = scenes.sample(32, torch.Generator().manual_seed(1), "dev")
    pictures = scenes.draw(chosen, size, size, torch.Generator().manual_seed(2))
    network = judge.load(critic.WEIGHTS)
    sure = critic.confidence(network, pictures, chosen)
    assert sure.shape == (32,) and sure.mean() > 0.9 and 0 <= sure.min() and sure.max() <= 1
    assert critic.confidence(network, pictures.roll(1, 0), chosen).mean() < 0.5
    alone = torch.cat(
        [critic.confidence(network, pictures[i : i + 1], chosen.take([i])) for i in range(32)]
    )
    assert torch.allclose(alone, sure, atol=1e-4)
