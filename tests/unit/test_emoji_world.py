"""The emoji world: grammar, sprites, scenes, and the rule that reads backgrounds back."""

import pytest
import torch
from PIL import Image

from demo.emoji import judge, rules, scenes, sprites
from demo.emoji.muon import orthogonalised
from demo.pack.emoji_words import (
    BACKGROUNDS,
    MAX_OBJECTS,
    OBJECTS,
    PAD,
    PLACES,
    TOKENS,
    VOCABULARY,
    WIDTH,
    Item,
    Prompt,
    PromptError,
    bag,
    parse,
)
from demo.pack.words import encode
from demo.weights import WeightsError

EXAMPLE = "grid blue background, big lobster left, small guitar top right"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def combinations(chosen: scenes.Scenes) -> torch.Tensor:
    """Split of the combination of each object that is drawn, (B, 4); -1 where there is none."""
    split = scenes.combination_split()[chosen.object, chosen.place, chosen.ground[:, None]]
    return torch.where(torch.arange(MAX_OBJECTS) < chosen.count[:, None], split, -1)


def test_there_are_256_objects_and_no_word_stands_twice_in_the_vocabulary():
    assert len(OBJECTS) == 256
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    assert all(len(name.split()) <= 2 for name in OBJECTS)


def test_the_example_is_read_word_by_word():
    items = (Item(1, OBJECTS.index("lobster"), 3), Item(0, OBJECTS.index("guitar"), 2))
    assert parse(EXAMPLE) == Prompt(BACKGROUNDS.index("grid"), 5, items)


def test_case_filler_words_and_separators_do_not_matter():
    assert parse(
        "A Grid BLUE background; with the big lobster at the left, small guitar at top right."
    ) == parse(EXAMPLE)


def test_names_and_places_of_two_words_are_kept_apart():
    prompt = parse("flat red background, big fire extinguisher bottom left, small fire left")
    assert [OBJECTS[item.object] for item in prompt.items] == ["fire extinguisher", "fire"]
    assert [PLACES[item.place] for item in prompt.items] == ["bottom left", "left"]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            "flat red background, big lobstr left",
            r"unknown object 'lobstr'.*Did you mean 'lobster'",
        ),
        ("flat red background, big ice creem left", r"Did you mean 'ice cream'"),
        ("flat mauve background", r"unknown colour 'mauve'.*Known: red, orange"),
        ("cloudy red background", r"unknown kind of background 'cloudy'.*Known: flat, gradient"),
        ("flat red background, large lobster left", r"unknown size 'large'.*small, big, huge"),
        ("flat red background, lobster left", r"unknown size 'lobster'"),
        ("flat red background, big lobster", r"no place in 'big lobster'.*top left"),
        (
            "flat red background, big lobster above",
            r"no known place at the end of 'big lobster above'",
        ),
        ("flat red background, big left", r"no object in 'big left'"),
        ("big lobster left", r"'big lobster left', is no background"),
        ("flat red background" + ", small bee top" * 5, r"5 objects given, at most 4 accepted"),
    ],
)
def test_a_bad_prompt_is_answered_with_what_was_given_and_what_is_accepted(prompt, message):
    with pytest.raises(PromptError, match=message):
        parse(prompt)


def test_word_counts_fill_the_tokens_and_an_empty_prompt_is_empty_tokens():
    counts = bag([EXAMPLE, ""])
    assert counts.shape == (2, TOKENS, len(VOCABULARY) + 1)
    assert counts[0].sum(1).tolist() == [3, 3, 4] + [1] * (TOKENS - 3)
    assert (counts[1, :, PAD] == 1).all() and counts[1].sum() == TOKENS
    context, pooled = encode(counts, torch.randn(len(VOCABULARY) + 1, WIDTH))
    assert context.shape == (2, TOKENS, WIDTH) and pooled.shape == (2, WIDTH)


def test_prompts_of_scenes_are_read_back():
    chosen = scenes.sample(64, generator())
    assert [parse(prompt) for prompt in chosen.prompts()] == chosen.parsed()
    again = scenes.Scenes.of_prompts(chosen.parsed())
    assert again.prompts() == chosen.prompts()


def test_scenes_count_words_as_their_prompts_do():
    chosen = scenes.sample(256, generator(1))
    assert torch.equal(chosen.bag(), bag(chosen.prompts()))


def test_a_tenth_of_the_combinations_is_held_out_for_dev_and_test_each():
    split = scenes.combination_split()
    tenth = split.numel() // 10
    assert split.shape == (len(OBJECTS), len(PLACES), len(BACKGROUNDS))
    assert [int((split == s).sum()) for s in range(3)] == [split.numel() - 2 * tenth, tenth, tenth]


@pytest.mark.parametrize(("split", "own"), [("train", 0), ("dev", 1), ("test", 2)])
def test_the_first_object_is_of_the_split_and_the_others_are_train_combinations(split, own):
    seen = combinations(scenes.sample(1000, generator(), split))
    assert (seen[:, 0] == own).all()
    assert seen[:, 1:].max() == 0


def test_no_object_and_no_place_stands_twice_in_a_scene():
    chosen = scenes.sample(1000, generator())
    for name in ("object", "place"):
        ordered = getattr(chosen, name).sort(1).values
        assert (ordered[:, 1:] != ordered[:, :-1]).all()
    assert set(chosen.count.tolist()) == set(range(1, MAX_OBJECTS + 1))
    assert set(chosen.object.flatten().tolist()) == set(range(len(OBJECTS)))


@pytest.mark.parametrize(("height", "width"), [(128, 128), (96, 160)])
def test_the_same_generator_draws_the_same_pictures_of_the_size_asked(height, width):
    chosen = scenes.sample(6, generator())
    first, second = (scenes.draw(chosen, height, width, generator(3)) for _ in range(2))
    assert first.shape == (6, 3, height, width)
    assert torch.equal(first, second)
    assert 0 <= first.min() and first.max() <= 1
    assert not torch.equal(
        first, scenes.draw(chosen, height, width, generator(4))
    )  # clouds and gradients differ


def test_an_object_changes_the_picture_where_it_stands_and_nowhere_else():
    prompts = ["flat red background, big apple top left", "flat red background"]
    with_one, without = scenes.draw(
        scenes.Scenes.of_prompts([parse(p) for p in prompts]), 128, 128, generator()
    )
    changed = (with_one != without).any(0)
    assert changed[:64, :64].any()
    assert not changed[80:].any() and not changed[:, 80:].any()


def test_cover_is_where_objects_stand():
    chosen = scenes.Scenes.of_prompts([parse("flat red background, big apple bottom right")])
    moves = torch.zeros(1, MAX_OBJECTS, 2, dtype=torch.long)
    covered = scenes.cover(chosen, 128, 128, moves)[0]
    anywhere = scenes.cover(chosen, 128, 128)[0]
    assert covered.sum() == 48 * 48 and covered[80:, 80:].sum() == 48 * 48
    assert anywhere.sum() == 52 * 52 and anywhere[covered].all()


def test_objects_stand_on_cells_of_latents_wherever_they_are_moved():
    chosen = scenes.sample(200, generator())
    moves = scenes.jitter(200, 256, 256, generator())
    corner, _ = scenes.corners(chosen, 256, 256, moves)
    assert set(moves.flatten().tolist()) == {-8, 0, 8}
    assert (corner % scenes.CELL == 0).all()
    assert (scenes.jitter(20, 128, 128, generator()) == 0).all()


def test_backgrounds_are_read_back_by_rule():
    chosen = scenes.sample(60, generator(), "dev")
    pictures = scenes.draw(chosen, 128, 128, generator())
    assert (rules.backgrounds(pictures, chosen) == chosen.ground_colour).float().mean() >= 0.98


def test_crops_of_regions_show_the_object_upright():
    chosen = scenes.Scenes.of_prompts([parse("flat white background, big apple bottom right")])
    picture = scenes.draw(chosen, 128, 128, generator())
    regions, index = judge.Regions.of_objects(chosen)
    crop = regions.crops(picture)[0]
    assert index.tolist() == [[0, 0]]
    assert crop.shape == (3, judge.SIDE, judge.SIDE)
    red, green, blue = crop[:, 24:40, 16:32].mean((1, 2))
    assert red > green + 0.3 and red > blue + 0.3
    assert crop[:, :3, :3].mean() > 0.9


@pytest.mark.parametrize("name", ["apple", "fire extinguisher", "saturn"])
def test_a_sprite_fills_its_side_and_fades_into_its_margin(name):
    stamp = sprites.sprite(OBJECTS.index(name), 64).float() / 255
    edge = round(64 * sprites.MARGIN)
    drawn = stamp[3, edge:-edge, edge:-edge] < 0.5
    assert stamp.shape == (4, 64 + 2 * edge, 64 + 2 * edge)
    assert max(int(drawn.any(0).sum()), int(drawn.any(1).sum())) >= 58
    assert stamp[3, 0].min() > 0.99 and stamp[:3, 0].max() == 0


def test_every_object_has_a_drawing():
    missing = [name for name in OBJECTS if not sprites.file_of(name).is_file()]
    assert not missing
    assert len(list(sprites.FOLDER.glob("*.webp"))) == len(OBJECTS)


def test_a_missing_truncated_or_wrong_drawing_is_named(tmp_path):
    with pytest.raises(sprites.SpriteError, match=r"'apple'.*missing.*Restore it"):
        sprites.read("apple", tmp_path / "none.webp")
    whole = sprites.file_of("apple").read_bytes()
    (tmp_path / "cut.webp").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(sprites.SpriteError, match=r"cannot be read.*Restore it"):
        sprites.read("apple", tmp_path / "cut.webp")
    (tmp_path / "text.webp").write_text("no picture")
    with pytest.raises(sprites.SpriteError, match="cannot be read"):
        sprites.read("apple", tmp_path / "text.webp")
    Image.new("RGB", (256, 256)).save(tmp_path / "three.webp")
    with pytest.raises(sprites.SpriteError, match=r"3 channels \(RGB\), accepted are 4"):
        sprites.read("apple", tmp_path / "three.webp")
    Image.new("RGBA", (256, 256)).save(tmp_path / "empty.png")
    with pytest.raises(sprites.SpriteError, match="no opaque pixel"):
        sprites.read("apple", tmp_path / "empty.png")


@pytest.mark.parametrize("shape", [(64, 64), (48, 200), (200, 48)])
def test_muon_makes_matrices_nearly_orthogonal(shape):
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=generator()), full_matrices=False)
    made = orthogonalised((u * torch.linspace(0.5, 5, u.shape[1])) @ v)
    singular = torch.linalg.svdvals(made)
    assert made.shape == shape
    assert 0.6 < singular.min() and singular.max() < 1.3
    assert (made * (u @ v)).sum() > 0.99 * singular.sum()  # the same directions


def test_the_judge_names_objects_of_held_out_scenes():
    chosen = scenes.sample(100, generator(), "test")
    pictures = scenes.draw(chosen, 128, 128, generator())
    named, index = judge.objects(judge.load(), pictures, chosen)
    assert (named == chosen.object[index[:, 0], index[:, 1]]).float().mean() >= 0.99


def test_the_judge_sees_no_object_on_empty_backgrounds():
    empty = ["flat red background", "gradient white background", "grid black background"]
    asked = [f"{prompt}, small apple top left, big bee right" for prompt in empty]
    pictures = scenes.draw(
        scenes.Scenes.of_prompts([parse(p) for p in empty]), 256, 256, generator()
    )
    named, _ = judge.objects(
        judge.load(), pictures, scenes.Scenes.of_prompts([parse(p) for p in asked])
    )
    assert (named == judge.NONE).all()


def test_judge_weights_that_are_missing_or_truncated_are_named(tmp_path):
    with pytest.raises(
        WeightsError, match=r"none.safetensors, a judge.*cannot be read.*Restore it"
    ):
        judge.load(tmp_path / "none.safetensors")
    whole = judge.WEIGHTS.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="cannot be read"):
        judge.load(tmp_path / "cut.safetensors")
