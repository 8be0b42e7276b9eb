"""Copy the sprites of `words.OBJECTS` out of two npm packages, both MIT:

    npm pack @lobehub/fluent-emoji-3d@1.1.0 emojibase-data@17.0.0    # then unpack both
    python -m demo.emoji.make_sprites --emoji fluent-emoji-3d/package --names emojibase-data/package

The drawings are Microsoft's Fluent Emoji; files are copied as they are (WebP, RGBA, 256 px).
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from demo.emoji.sprites import FOLDER, file_of, read
from demo.pack.emoji_words import OBJECTS

# The package's own label where people would type another word.
# fmt: off
LABELS = {
    "apple": "red apple", "bee": "honeybee", "beer": "beer mug", "book": "closed book", "boot": "hiking boot",
    "burger": "hamburger", "cake": "birthday cake", "car": "automobile", "caterpillar": "bug",
    "cheese": "cheese wedge", "chick": "front-facing baby chick", "chili": "hot pepper",
    "chocolate": "chocolate bar", "christmas tree": "Christmas tree", "circus": "circus tent",
    "cocktail": "tropical drink", "coffee": "hot beverage", "computer": "desktop computer", "corn": "ear of corn",
    "diamond": "gem stone", "dice": "game die", "dinosaur": "sauropod", "donut": "doughnut",
    "drumstick": "poultry leg", "football": "american football", "fried egg": "cooking", "fries": "french fries",
    "gamepad": "video game", "gift": "wrapped gift", "globe": "globe showing Europe-Africa", "heart": "heart suit",
    "helmet": "rescue worker’s helmet", "high heel": "high-heeled shoe", "hippo": "hippopotamus",
    "honey": "honey pot", "hourglass": "hourglass done", "island": "desert island", "key": "old key",
    "kiwi": "kiwi fruit", "ladybug": "lady beetle", "lantern": "red paper lantern", "lock": "locked",
    "mailbox": "postbox", "medal": "sports medal", "milk": "glass of milk", "moon": "crescent moon",
    "mountain": "snow-capped mountain", "palette": "artist palette", "phone": "telephone",
    "piano": "musical keyboard", "pine tree": "evergreen tree", "pumpkin": "jack-o-lantern",
    "ramen": "steaming bowl", "saturn": "ringed planet", "scooter": "motor scooter", "shell": "spiral shell",
    "sneaker": "running shoe", "snowman": "snowman without snow", "steak": "cut of meat", "target": "bullseye",
    "traffic light": "vertical traffic light", "train": "locomotive", "tree": "deciduous tree",
    "truck": "delivery truck", "ufo": "flying saucer", "whale": "spouting whale",
}
# fmt: on


def source(assets: Path, code: str) -> Path:
    """The drawing of a code point sequence, whose name may or may not have the variation selector."""
    names = (code, code.replace("-fe0f", ""), f"{code}-fe0f")
    found = [assets / f"{name}.webp" for name in names if (assets / f"{name}.webp").is_file()]
    if not found:
        raise SystemExit(
            f"--emoji: no drawing for {code} in {assets}; use the version named in this script's help."
        )
    return found[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--emoji", type=Path, required=True, help="unpacked fluent-emoji-3d/package"
    )
    parser.add_argument("--names", type=Path, required=True, help="unpacked emojibase-data/package")
    args = parser.parse_args()
    entries = json.loads((args.names / "en" / "data.json").read_text(encoding="utf-8"))
    codes = {entry["label"]: entry["hexcode"].lower() for entry in entries}
    FOLDER.mkdir(exist_ok=True)
    for name in OBJECTS:
        label = LABELS.get(name, name)
        if label not in codes:
            raise SystemExit(
                f"--names: no label {label!r} for object {name!r}; use the version named in the help."
            )
        shutil.copyfile(source(args.emoji / "assets", codes[label]), file_of(name))
        read(name)  # raises where the drawing is not what scenes can use
    size = sum(file.stat().st_size for file in FOLDER.glob("*.webp"))
    print(f"wrote {len(OBJECTS)} sprites, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
