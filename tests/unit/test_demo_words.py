"""The demo models' language: grammar, errors, word tables, conditioning."""

import json

import pytest
import torch
from safetensors.torch import save_file

from demo import scenes
from demo.pack import emoji_words, word_table
from demo.pack.language import EMOJI, LANGUAGES, SHAPES
from demo.pack.words import (
    BACKGROUNDS,
    COLOURS,
    PAD,
    TOKENS,
    VOCABULARY,
    WIDTH,
    PromptError,
    bag,
    encode,
    parse,
)


@pytest.fixture
def rows() -> torch.Tensor:
    """A word table's random vectors."""
    return torch.randn(len(VOCABULARY) + 1, WIDTH)


@pytest.fixture
def table(rows) -> word_table.WordTable:
    return word_table.WordTable(SHAPES, rows)


def save(rows: torch.Tensor, path, vocabulary=VOCABULARY) -> None:
    save_file({"words": rows}, path, metadata={"vocabulary": json.dumps(vocabulary)})


def test_prompts_of_scenes_are_read_back_word_by_word():
    chosen = scenes.sample(64, torch.Generator().manual_seed(0))
    for row, prompt in enumerate(chosen.prompts()):
        phrases = [" ".join(VOCABULARY[i] for i in phrase) for phrase in parse(prompt)]
        assert ", ".join(phrases) == prompt
        assert len(phrases) == 1 + int(chosen.count[row])
        assert (
            phrases[0]
            == f"{BACKGROUNDS[chosen.ground[row]]} {COLOURS[chosen.ground_colour[row]]} background"
        )


def test_case_filler_words_and_separators_do_not_matter():
    assert parse("A Flat RED background; with the big blue circle at top") == parse(
        "flat red background, big blue circle top"
    )


def test_an_unknown_word_is_named_with_its_phrase_and_the_known_words():
    with pytest.raises(
        PromptError, match=r"'mauve' in 'big mauve circle'.*Known words: red, orange"
    ):
        parse("flat red background, big mauve circle")


def test_too_many_phrases_are_refused_with_the_number_that_fits():
    with pytest.raises(PromptError, match=f"9 phrases given, at most {TOKENS}"):
        parse(", ".join(["red circle"] * 9))


def test_an_empty_prompt_is_made_of_empty_tokens():
    counts = bag(["", " , "])
    assert counts.shape == (2, TOKENS, len(VOCABULARY) + 1)
    assert counts[..., PAD].eq(1).all() and counts[..., :PAD].eq(0).all()


def test_a_phrase_is_the_sum_of_its_words_and_the_pooled_vector_the_mean_of_phrases(rows):
    context, pooled = encode(bag(["red circle"]), rows)
    word = {w: rows[i] for i, w in enumerate(VOCABULARY)}
    torch.testing.assert_close(context[0, 0], word["red"] + word["circle"])
    torch.testing.assert_close(context[0, 1], rows[PAD])
    torch.testing.assert_close(pooled[0], context[0].mean(0))


def test_a_line_is_an_image_of_the_batch(table):
    [[context, extra]] = word_table.conditioning("red circle\n\nblue ring\n", table)
    assert context.shape == (3, TOKENS, WIDTH) and extra["pooled_output"].shape == (3, WIDTH)
    [[empty, _]] = word_table.conditioning("", table)
    torch.testing.assert_close(context[1:2], empty)


def test_a_longer_context_appends_empty_tokens_and_keeps_the_pooled_vector(table):
    [[short, extra]] = word_table.conditioning("red circle", table)
    [[long, longer]] = word_table.conditioning("red circle", table, 24)
    assert long.shape == (1, 24, WIDTH)
    torch.testing.assert_close(long[:, :TOKENS], short)
    torch.testing.assert_close(long[0, TOKENS:], table.rows[PAD].expand(16, -1))
    torch.testing.assert_close(longer["pooled_output"], extra["pooled_output"])


@pytest.mark.parametrize("tokens", [7, 65])
def test_a_context_of_a_wrong_length_is_refused(table, tokens):
    with pytest.raises(ValueError, match=f"tokens {tokens} given, {TOKENS} to 64 accepted"):
        word_table.conditioning("red circle", table, tokens)


def test_a_word_table_is_read_back_with_its_language(rows, tmp_path):
    path = tmp_path / "flux_words.safetensors"
    save(rows, path)
    assert word_table.load(path).language is word_table.language_of(path) is SHAPES
    torch.testing.assert_close(word_table.load(path).rows, rows)
    emoji = torch.randn(len(EMOJI.vocabulary) + 1, EMOJI.width)
    save(emoji, path, EMOJI.vocabulary)
    assert word_table.load(path).language is word_table.language_of(path) is EMOJI


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_the_example_of_a_language_is_read_by_it_and_by_no_other(language):
    rows = torch.randn(len(language.vocabulary) + 1, language.width)
    [[context, extra]] = word_table.conditioning(
        language.example, word_table.WordTable(language, rows)
    )
    assert context.shape == (1, language.tokens, language.width)
    assert extra["pooled_output"].shape == (1, language.width)
    for other in LANGUAGES:
        if other is not language:
            with pytest.raises(PromptError, match="unknown"):
                other.bag([language.example], other.tokens)


def test_an_unknown_object_is_answered_with_the_nearest_known_names():
    table = word_table.WordTable(EMOJI, torch.randn(len(EMOJI.vocabulary) + 1, EMOJI.width))
    with pytest.raises(PromptError, match=r"unknown object 'gitar'.*Did you mean 'guitar'"):
        word_table.conditioning("flat red background, big gitar left", table)
    many = "flat red background" + ", small bee top" * (emoji_words.MAX_OBJECTS + 1)
    with pytest.raises(PromptError, match="5 objects given, at most 4 accepted"):
        word_table.conditioning(many, table)


def test_a_missing_word_table_is_named_by_its_path(tmp_path):
    path = tmp_path / "flux_words.safetensors"
    for read in (word_table.load, word_table.language_of):
        with pytest.raises(word_table.WordTableError, match=f"{path} is missing.*restore"):
            read(path)


@pytest.mark.parametrize("size", [0, 5, 600, -4])
def test_a_truncated_word_table_is_named_by_its_path(rows, tmp_path, size):
    path = tmp_path / "flux_words.safetensors"
    save(rows, path)
    path.write_bytes(path.read_bytes()[:size])
    for read in (word_table.load, word_table.language_of):
        with pytest.raises(word_table.WordTableError, match=f"{path} cannot be read.*restore"):
            read(path)


def test_a_table_for_other_words_or_of_another_shape_is_refused(rows, tmp_path):
    path = tmp_path / "flux_words.safetensors"
    save(rows, path, (*VOCABULARY[:-1], "mauve"))
    message = r"made for other words: 31 given, 31 \(shapes\) or 278 \(emoji\) accepted.*background, mauve"
    with pytest.raises(word_table.WordTableError, match=message):
        word_table.load(path)
    save(rows[:, :32].contiguous(), path)
    with pytest.raises(
        word_table.WordTableError, match=r"shape \(32, 32\), accepted is \(32, 64\)"
    ):
        word_table.load(path)
