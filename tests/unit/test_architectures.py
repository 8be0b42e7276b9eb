"""A family is told by a class name and by everything that is read of its models."""

from types import SimpleNamespace

import pytest

from rapid_core.architectures import ALL, FLUX2, Z_IMAGE, describe

CLASSES = {
    "flux": "Flux",
    "flux2": "Flux",
    "sd3": "MMDiT",
    "chroma": "Chroma",
    "hunyuan_video": "HunyuanVideo",
    "qwen_image": "QwenImageTransformer2DModel",
    "wan": "WanModel",
    "lumina2": "NextDiT",
    "z_image": "NextDiT",
    "lumina_next": "LuminaNextDiT",
}


def stand_in(architecture, **changed):
    """A model of a family, with what is read of it and nothing else."""
    attributes = {group.attribute: [object()] for group in architecture.groups}
    attributes |= {architecture.hidden: 128, "patch_size": (1, 2, 2)}
    if architecture is FLUX2:
        attributes["params"] = SimpleNamespace(global_modulation=True)
    if architecture is Z_IMAGE:
        attributes["pad_tokens_multiple"] = 32
    attributes |= changed
    kept = {name: value for name, value in attributes.items() if value is not None}
    return type(CLASSES[architecture.family], (), kept)()


def read_of(architecture):
    """Names of what is read of a family's models."""
    return [*(group.attribute for group in architecture.groups), architecture.hidden, "patch_size"]


@pytest.mark.parametrize("architecture", ALL, ids=lambda a: a.family)
def test_a_model_with_all_that_is_read_of_its_family_is_of_it(architecture):
    assert describe(stand_in(architecture)) is architecture


@pytest.mark.parametrize(
    ("architecture", "name"),
    [(architecture, name) for architecture in ALL for name in read_of(architecture)],
    ids=lambda value: getattr(value, "family", value),
)
def test_a_model_that_lacks_any_of_it_is_of_no_family(architecture, name):
    assert describe(stand_in(architecture, **{name: None})) is None


@pytest.mark.parametrize(
    "changed", [{"joint_blocks": []}, {"joint_blocks": 3}, {"patch_size": ()}, {"patch_size": "x"}]
)
def test_a_model_whose_attributes_are_something_else_is_of_no_family(changed):
    (sd3,) = (architecture for architecture in ALL if architecture.family == "sd3")
    assert describe(stand_in(sd3, **changed)) is None


def test_a_class_that_nobody_named_is_of_no_family():
    assert describe(object()) is None and describe(None) is None
