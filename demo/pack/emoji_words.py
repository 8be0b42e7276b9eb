"""The language of the emoji world: words, grammar, and word counts for the models. Pure torch, no ComfyUI.

A prompt is one background and up to four objects: "grid blue background, big lobster left, small guitar top right".
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from .words import BACKGROUNDS, COLOURS, FILLERS, PLACE_WORDS, PLACES, SIZES, PromptError

# fmt: off
OBJECTS = (
    "accordion", "airplane", "ambulance", "apple", "avocado", "backpack", "balloon", "banana", "baseball", "basket",
    "basketball", "bathtub", "bear", "bed", "bee", "beer", "beetle", "bell", "bell pepper", "blueberries", "bomb",
    "bone", "book", "boot", "bowling", "boxing glove", "bread", "briefcase", "broccoli", "bubble tea", "bucket",
    "burger", "bus", "butterfly", "cactus", "cake", "camel", "camera", "candle", "car", "carrot", "castle", "cat",
    "caterpillar", "chair", "cheese", "cherries", "chick", "chicken", "chili", "chocolate", "christmas tree",
    "circus", "cloud", "cocktail", "coconut", "coffee", "coin", "computer", "cookie", "corn", "cow", "crab",
    "crocodile", "croissant", "crown", "crystal ball", "cupcake", "diamond", "dice", "dinosaur", "dog", "dolphin",
    "donut", "door", "dress", "droplet", "drum", "drumstick", "duck", "eggplant", "elephant", "envelope", "factory",
    "fire", "fire engine", "fire extinguisher", "fish", "flamingo", "flashlight", "floppy disk", "football",
    "fountain", "fox", "fried egg", "fries", "frog", "fuel pump", "gamepad", "garlic", "gear", "gift", "giraffe",
    "globe", "gloves", "gorilla", "grapes", "guitar", "hammer", "hamster", "handbag", "heart", "hedgehog",
    "helicopter", "helmet", "hibiscus", "high heel", "hippo", "honey", "horse", "hot dog", "hourglass", "house",
    "ice cream", "island", "jeans", "jellyfish", "joystick", "kangaroo", "key", "kiwi", "koala", "ladder",
    "ladybug", "lantern", "laptop", "lemon", "leopard", "light bulb", "lion", "lipstick", "lobster", "lock",
    "lollipop", "luggage", "magnet", "mailbox", "maple leaf", "medal", "megaphone", "microphone", "microscope",
    "milk", "money bag", "monkey", "moon", "motorcycle", "mountain", "mushroom", "octopus", "owl", "package",
    "palette", "palm tree", "pancakes", "panda", "parrot", "peach", "peacock", "pear", "pencil", "penguin", "phone",
    "piano", "pig", "pill", "pine tree", "pineapple", "pizza", "police car", "popcorn", "potted plant", "pretzel",
    "printer", "pumpkin", "puzzle piece", "rabbit", "raccoon", "radio", "rainbow", "ramen", "ribbon", "rice ball",
    "rocket", "roller skate", "rooster", "rose", "sailboat", "sandwich", "saturn", "saxophone", "scooter", "scroll",
    "shark", "shell", "shield", "ship", "skateboard", "slot machine", "sloth", "snail", "snake", "sneaker",
    "snowflake", "snowman", "soccer ball", "socks", "star", "steak", "strawberry", "sun", "sunflower", "sushi",
    "swan", "t-shirt", "taco", "target", "taxi", "teapot", "teddy bear", "television", "tiger", "toilet", "tomato",
    "top hat", "tractor", "traffic light", "train", "tree", "trophy", "truck", "trumpet", "tulip", "turtle", "ufo",
    "umbrella", "unicorn", "violin", "volcano", "waffle", "watermelon", "whale", "window", "wolf", "yarn", "zebra",
)
# fmt: on
VOCABULARY = COLOURS + SIZES + BACKGROUNDS + PLACE_WORDS + ("background",) + OBJECTS

MAX_OBJECTS = 4
TOKENS = MAX_OBJECTS + 2  # background, four objects, one spare: the fixed length of a prompt
PAD = len(VOCABULARY)  # row of the word table used for every empty token
WIDTH = 128  # width of CONDITIONING and of the pooled vector

_INDEX = {word: i for i, word in enumerate(VOCABULARY)}
OBJECT_ROWS = torch.tensor([_INDEX[name] for name in OBJECTS])  # rows of the word table
GRAMMAR = (
    f"A prompt is 'KIND COLOUR background', then up to {MAX_OBJECTS} times ', SIZE OBJECT PLACE', "
    "e.g. 'grid blue background, big lobster left, small guitar top right'"
)


@dataclass(frozen=True)
class Item:
    """One object of a prompt, as indices into SIZES, OBJECTS and PLACES."""

    size: int
    object: int
    place: int


@dataclass(frozen=True)
class Prompt:
    """A parsed prompt; `ground` and `colour` are indices into BACKGROUNDS and COLOURS."""

    ground: int
    colour: int
    items: tuple[Item, ...]


def _pick(word: str, known: tuple[str, ...], what: str, phrase: str) -> int:
    """Index of a word. Raises PromptError that offers the nearest known words."""
    if word in known:
        return known.index(word)
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    offer = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    listed = (
        ", ".join(known)
        if len(known) < 12
        else f"{len(known)} names, listed as OBJECTS in demo/pack/emoji_words.py"
    )
    raise PromptError(
        f"Demo Prompt: unknown {what} {word!r} in {phrase!r}. {offer}Known: {listed}. {GRAMMAR}."
    )


def _item(words: list[str], phrase: str) -> Item:
    """One 'SIZE OBJECT PLACE' phrase."""
    size = _pick(words[0], SIZES, "size", phrase)
    rest = words[1:]
    for length in (2, 1):  # of the place in words
        place = " ".join(rest[-length:])
        if len(rest) > length and place in PLACES:
            return Item(
                size,
                _pick(" ".join(rest[:-length]), OBJECTS, "object", phrase),
                PLACES.index(place),
            )
    if " ".join(rest) in OBJECTS:
        raise PromptError(
            f"Demo Prompt: no place in {phrase!r}. Add one of: {', '.join(PLACES)}. {GRAMMAR}."
        )
    if not rest or " ".join(rest) in PLACES:
        raise PromptError(
            f"Demo Prompt: no object in {phrase!r}. Name one between size and place. {GRAMMAR}."
        )
    raise PromptError(
        f"Demo Prompt: no known place at the end of {phrase!r}. Places: {', '.join(PLACES)}. {GRAMMAR}."
    )


def parse(prompt: str) -> Prompt | None:
    """What a prompt asks for, None for an empty (unconditional) one. Raises PromptError."""
    phrases = []
    for phrase in re.split(r"[,;.]", prompt.lower()):
        words = [word for word in phrase.split() if word not in FILLERS]
        if words:
            phrases.append((words, phrase.strip()))
    if not phrases:
        return None
    words, phrase = phrases[0]
    if len(words) != 3 or words[2] != "background":
        raise PromptError(
            f"Demo Prompt: the first phrase, {phrase!r}, is no background. {GRAMMAR}."
        )
    if len(phrases) - 1 > MAX_OBJECTS:
        raise PromptError(
            f"Demo Prompt: {len(phrases) - 1} objects given, at most {MAX_OBJECTS} accepted: {prompt!r}."
        )
    ground = _pick(words[0], BACKGROUNDS, "kind of background", phrase)
    colour = _pick(words[1], COLOURS, "colour", phrase)
    return Prompt(ground, colour, tuple(_item(words, phrase) for words, phrase in phrases[1:]))


def word_rows(prompt: Prompt | None) -> list[list[int]]:
    """Rows of the word table for each phrase of a prompt."""
    if prompt is None:
        return []
    rows = [
        [_INDEX[BACKGROUNDS[prompt.ground]], _INDEX[COLOURS[prompt.colour]], _INDEX["background"]]
    ]
    for item in prompt.items:
        words = [SIZES[item.size], OBJECTS[item.object], *PLACES[item.place].split()]
        rows.append([_INDEX[word] for word in words])
    return rows


def bag(prompts: list[str], tokens: int = TOKENS) -> Tensor:
    """Word counts of each phrase of each prompt, (B, tokens, len(VOCABULARY) + 1); empty tokens count PAD once."""
    counts = torch.zeros(len(prompts), tokens, len(VOCABULARY) + 1)
    for row, prompt in enumerate(prompts):
        phrases = word_rows(parse(prompt))
        for column in range(tokens):
            for word in phrases[column] if column < len(phrases) else [PAD]:
                counts[row, column, word] += 1
    return counts
