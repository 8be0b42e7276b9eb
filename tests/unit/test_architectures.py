"""A family is told by a class name and by everything that is read of its models."""

from types import SimpleNamespace

import pytest

from rapid_core.architectures import ALL, AURA, FLUX2, Z_IMAGE, describe

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
    "chroma_radiance": "ChromaRadiance",
    "mage_flow": "MageFlowTransformer2DModel",
    "aura_flow": "MMDiT",
    "lens": "LensTransformer2DModel",
    "joy_image": "JoyImageTransformer3DModel",
    "krea2": "SingleStreamDiT",
    "predict2": "MiniTrainDIT",
    "kandinsky5": "Kandinsky5",
    "minimax_h3": "MiniMaxH3Model",
    "ltxv": "LTXVModel",
    "ltx_av": "LTXAVModel",
}
WAN_CLASSES = (
    "VaceWanModel",
    "CameraWanModel",
    "WanModel_S2V",
    "HumoWanModel",
    "AnimateWanModel",
    "SCAILWanModel",
    "SCAIL2WanModel",
    "WanDancerModel",
    "CausalWanModel",
)


def stand_in(architecture, **changed):
    """A model of a family, with what is read of it and nothing else."""
    attributes = {group.attribute: [object()] for group in architecture.groups}
    name, *inner = architecture.hidden.split(".")
    attributes[name] = SimpleNamespace(**dict.fromkeys(inner, 128)) if inner else 128
    if isinstance(architecture.patch_size, str):
        attributes[architecture.patch_size] = (1, 2, 2)
    if architecture is FLUX2:
        attributes["params"] = SimpleNamespace(global_modulation=True)
    if architecture is Z_IMAGE:
        attributes["pad_tokens_multiple"] = 32
    attributes |= changed
    kept = {name: value for name, value in attributes.items() if value is not None}
    return type(CLASSES[architecture.family], (), kept)()


def read_of(architecture):
    """Names of what is read of a family's models."""
    names = [*(group.attribute for group in architecture.groups), architecture.hidden.split(".")[0]]
    patch = architecture.patch_size
    return [*names, patch] if isinstance(patch, str) else names


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


@pytest.mark.parametrize("name", WAN_CLASSES)
def test_every_class_of_wan_is_of_its_family(name):
    (wan,) = (architecture for architecture in ALL if architecture.family == "wan")
    assert describe(type(name, (type(stand_in(wan)),), {})()) is wan


def test_two_classes_of_one_name_are_told_apart_by_what_they_have():
    assert describe(stand_in(AURA)) is AURA
    assert describe(type("MMDiT", (), {"double_layers": [1]})()) is None


@pytest.mark.parametrize(("mapping", "known"), [({0: 0}, False), ({1: 0}, True)])
def test_wan_vace_that_adds_to_its_last_block_is_of_no_family(mapping, known):
    (wan,) = (architecture for architecture in ALL if architecture.family == "wan")
    model = type("VaceWanModel", (type(stand_in(wan)),), {"vace_layers_mapping": mapping})()
    assert (describe(model) is wan) == known


def test_predict2_with_positions_in_every_block_is_of_no_family():
    (predict2,) = (architecture for architecture in ALL if architecture.family == "predict2")
    assert describe(stand_in(predict2, extra_per_block_abs_pos_emb=True)) is None


@pytest.mark.parametrize(
    ("family", "shapes", "tokens"),
    [
        ("ltx_av", [(1, 128, 3, 4, 6), (1, 8, 30, 16)], 30),
        ("minimax_h3", [(1, 24, 2, 8, 12), (1, 32, 2, 12)], 24),
        ("ltx_av", [(1, 128, 3, 4, 6)], 0),
        ("flux", [(1, 16, 8, 8), (1, 8, 30, 16)], 0),
    ],
)
def test_tokens_of_the_sound_are_cut_from_the_second_part(family, shapes, tokens):
    (found,) = (architecture for architecture in ALL if architecture.family == family)
    assert found.audio_tokens(shapes) == tokens


def test_more_frames_than_one_are_not_taken_where_they_are_other_rows():
    (krea,) = (architecture for architecture in ALL if architecture.family == "krea2")
    assert krea.takes((1, 16, 8, 8)) and krea.takes((1, 16, 1, 8, 8))
    assert not krea.takes((1, 16, 2, 8, 8)) and not krea.takes((1, 64, 100))


def test_a_class_that_nobody_named_is_of_no_family():
    assert describe(object()) is None and describe(None) is None
