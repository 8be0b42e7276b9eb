"""Keys of models: what makes two the same, and what is said of files that hold none."""

import dataclasses
import itertools
import json

import pytest

from rapid_core.calibration.model_key import NEAREST_FIRST, ModelKey, size_class

KEY = ModelKey(
    family="Flux",
    architecture="flux",
    weights="0123456789abcdef",
    sampler="euler",
    guidance="CFGGuider 2.5",
    size="32x32",
    sigmas=(1.0, 0.75, 0.5, 0.25, 0.0),
)
OTHERS = {
    "family": "MMDiT",
    "architecture": "",
    "weights": "fedcba9876543210",
    "patches": "0011223344556677",
    "sampler": "dpmpp_2m",
    "guidance": "CFGGuider 4",
    "size": "32x46",
    "references": True,
    "turns": "SkipLayerGuidanceDiT 0.5",
    "sigmas": (1.0, 0.8, 0.5, 0.2, 0.0),
}


def changed(*names):
    return dataclasses.replace(KEY, **{name: OTHERS[name] for name in names})


def test_every_field_makes_another_name():
    keys = [KEY, *map(changed, OTHERS)]
    assert len({key.name for key in keys}) == len(keys) == len(dataclasses.fields(KEY)) + 1
    assert KEY.name.startswith("Flux-") and len(KEY.name) == len("Flux-") + 12


def test_a_name_is_the_same_in_another_process():
    """And in older versions: what was learned with them goes on."""
    assert KEY.name == "Flux-f1c9bf2ae9f9"
    assert "turns" not in KEY.to_json()


def test_sigmas_that_differ_by_rounding_are_the_same():
    near = dataclasses.replace(KEY, sigmas=tuple(s + 1e-6 for s in KEY.sigmas))
    assert near.name == KEY.name and KEY.difference(near) == ()
    far = dataclasses.replace(KEY, sigmas=tuple(s + 1e-3 for s in KEY.sigmas))
    assert far.name != KEY.name and KEY.difference(far) == ("sigmas",)


def test_a_name_stays_in_its_folder():
    name = dataclasses.replace(KEY, family="../../a\\b: ü").name
    assert not set(name) & set("./\\: ü")


def test_what_differs_is_named_nearest_first():
    assert KEY.difference(KEY) == ()
    for names in itertools.combinations(NEAREST_FIRST, 2):
        assert KEY.difference(changed(*reversed(names))) == names
        assert changed(*names).difference(KEY) == names


@pytest.mark.parametrize(
    ("size", "near"),
    [("46x46", False), ("32x54", True), ("22x32", True), ("16x16", False), ("64x64", False)]
    + [("2x32x32", True), ("3x32x32", False), ("", False), ("12a", False)],
)
def test_nothing_follows_from_sizes_that_are_far_away(size, near):
    other = dataclasses.replace(KEY, size=size)
    assert KEY.difference(other) == other.difference(KEY) == (("size",) if near else None)


@pytest.mark.parametrize("name", ["family", "architecture", "weights", "turns"])
def test_nothing_follows_from_other_weights_or_another_family_or_course(name):
    assert KEY.difference(changed(name)) is None
    assert changed(name).difference(KEY) is None
    assert KEY.difference(changed(name, "sampler")) is None


@pytest.mark.parametrize(("highest", "power"), [(1.0, 1), (14.6, 3)], ids=["flow", "SD 1.5"])
def test_nothing_follows_from_a_part_of_the_sigmas_for_the_rest(highest, power):
    """As of image to image, or of one of two samplers in a row; but the whole says something of both."""
    sigmas = tuple(highest * (1 - i / 28) ** power for i in range(29))
    whole = dataclasses.replace(KEY, sigmas=sigmas)
    for part in (sigmas[:15], sigmas[14:], sigmas[20:]):
        key = dataclasses.replace(KEY, sigmas=part)
        assert whole.difference(key) is None and key.difference(whole) == ("sigmas",)
    first, second = (dataclasses.replace(KEY, sigmas=s) for s in (sigmas[:15], sigmas[14:]))
    assert first.difference(second) is None and second.difference(first) is None
    # Nearly all of it says something: a first step left out, an end that is not 0.
    for most in (sigmas[1:], sigmas[:-1]):
        assert whole.difference(dataclasses.replace(KEY, sigmas=most)) == ("sigmas",)


def test_json_gives_the_key_back():
    for key in (KEY, *map(changed, OTHERS)):
        assert ModelKey.from_json(json.loads(json.dumps(key.to_json()))) == key


@pytest.mark.parametrize("name", KEY.to_json())
def test_a_field_that_is_missing_is_named(name):
    found = KEY.to_json()
    del found[name]
    with pytest.raises(ValueError, match=f"has no {name}$"):
        ModelKey.from_json(found)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(ModelKey)])
@pytest.mark.parametrize("value", [None, 3, {}])
def test_a_field_of_another_kind_is_named(name, value):
    with pytest.raises(ValueError, match=f"^{name} of a model key is"):
        ModelKey.from_json({**KEY.to_json(), name: value})


@pytest.mark.parametrize("sigma", [None, True, "1", float("nan"), float("inf")])
def test_sigmas_that_are_no_numbers_are_refused(sigma):
    with pytest.raises(ValueError, match="finite"):
        ModelKey.from_json({**KEY.to_json(), "sigmas": [1.0, sigma]})


def test_what_is_no_key_is_refused():
    with pytest.raises(ValueError, match="list"):
        ModelKey.from_json([])


@pytest.mark.parametrize("other", [(32, 33), (34, 30), (30, 34)])
def test_sizes_within_a_class_share_it(other):
    assert size_class(other) == size_class((32, 32)) == "32x32"


@pytest.mark.parametrize(
    "sides, others",
    [
        ((32, 32), (64, 64)),
        ((32, 32), (32, 48)),
        ((48, 32), (32, 48)),
        ((2, 32, 32), (3, 32, 32)),
        ((21, 60, 104), (31, 60, 104)),
        ((32, 32), (1, 32, 32)),
    ],
)
def test_sizes_that_are_far_from_each_other_do_not(sides, others):
    assert size_class(sides) != size_class(others)


def test_two_lengths_of_a_class_are_less_than_a_fifth_apart():
    for a, b in itertools.combinations(range(1, 200), 2):
        if size_class([a]) == size_class([b]):
            assert b / a < 1.2


def test_a_latent_without_extent_has_no_class():
    with pytest.raises(ValueError):
        size_class((0, 32))
