"""The nodes' inputs: what has a default may be left out, old names of choices are understood, and
what is not accepted is refused in words before a model loads."""

import asyncio
import math

import pytest

REQUIRED = {
    "RAPID_Accelerate": ["model"],
    "RAPID_LoadPolicy": ["policy"],
    "RAPID_Calibrate": ["model", "positive", "negative", "sampler", "sigmas", "latent_image"],
    "RAPID_PolicySampler": ["policy"],
    "RAPID_CacheReuse": ["model"],
    "RAPID_RegionAdaptive": ["model"],
    "RAPID_SparseAttention": ["model"],
    "RAPID_Report": ["model", "latent"],
    "RAPID_LoadLuminaNext": ["model_name"],
    "RAPID_LoadLuminaNextText": ["text_encoder"],
    "RAPID_Compare": ["picture_a", "picture_b"],
}
SHOWN = {  # what is not folded away
    "RAPID_Accelerate": ["model", "speedup", "mode", "closeness", "policy"],
    "RAPID_LoadPolicy": ["policy"],
    "RAPID_Calibrate": [
        "model",
        "noise_seed",
        "cfg",
        "positive",
        "positive_2",
        "positive_3",
        "positive_4",
        "negative",
        "sampler",
        "sigmas",
        "latent_image",
        "name",
        "effort",
    ],
    "RAPID_PolicySampler": ["policy", "speedup"],
    "RAPID_CacheReuse": ["model", "reuse_threshold"],
    "RAPID_RegionAdaptive": ["model", "keep_ratio", "preset", "error_threshold", "mask"],
    "RAPID_SparseAttention": ["model", "density", "backend"],
    "RAPID_Report": ["model", "latent", "picture"],
    "RAPID_LoadLuminaNext": ["model_name"],
    "RAPID_LoadLuminaNextText": ["text_encoder"],
    "RAPID_Compare": ["picture_a", "picture_b", "record_a", "record_b", "blind"],
}
OLD = [
    ("RAPID_CacheReuse", "level", "hold", "skip"),
    ("RAPID_RegionAdaptive", "preset", "clocks", "per-token error"),
    ("RAPID_RegionAdaptive", "inactive", "hold", "last value"),
    ("RAPID_RegionAdaptive", "inactive", "forecast", "predict"),
    ("RAPID_RegionAdaptive", "kv_cache", "forecast", "predict"),
    ("RAPID_RegionAdaptive", "kv_cache", "model", "last value"),
    ("RAPID_RegionAdaptive", "kv_cache", "pooled", "last value"),
    ("RAPID_SparseAttention", "left_out", "forecast", "predict"),
    ("RAPID_SparseAttention", "left_out", "hold", "last value"),
    ("RAPID_SparseAttention", "left_out", "dropped", "none"),
    ("RAPID_SparseAttention", "backend", "spargeattn", "auto"),
]
WINDOWS = ["RAPID_Accelerate", "RAPID_CacheReuse", "RAPID_SparseAttention"]


class AModel:
    """A node that gives a MODEL, without a file."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "give"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}


@pytest.fixture(scope="module")
def nodes(pack_module):
    """node id -> class."""
    return {node.GET_SCHEMA().node_id: node for node in pack_module("nodes").NODES}


@pytest.fixture
def validate(comfy_host, nodes, monkeypatch):
    """validate(node id, **inputs): what the host finds wrong, as texts, before it runs anything."""
    import execution

    monkeypatch.setitem(comfy_host.nodes.NODE_CLASS_MAPPINGS, "AModel", AModel)

    def run(node_id, **inputs):
        prompt = {
            "model": {"class_type": "AModel", "inputs": {}},
            "node": {"class_type": node_id, "inputs": {"model": ["model", 0], **inputs}},
        }
        good, errors, _ = asyncio.run(execution.validate_inputs("run", prompt, "node", {}))
        assert good is not bool(errors)
        return [f"{error['message']}: {error['details']}" for error in errors]

    return run


def test_only_what_has_no_default_is_required(nodes):
    found = {
        node_id: [slot.id for slot in node.GET_SCHEMA().inputs if not slot.optional]
        for node_id, node in nodes.items()
    }
    assert found == REQUIRED


def test_what_is_rarely_used_is_folded_away(nodes):
    found = {
        node_id: [slot.id for slot in node.GET_SCHEMA().inputs if not slot.advanced]
        for node_id, node in nodes.items()
    }
    assert found == SHOWN


def test_what_was_not_measured_is_marked_experimental(nodes):
    marked = {node_id for node_id, node in nodes.items() if node.GET_SCHEMA().is_experimental}
    assert marked == {
        "RAPID_SparseAttention",
        "RAPID_PolicySampler",
        "RAPID_LoadLuminaNext",
        "RAPID_LoadLuminaNextText",
    }


def test_inputs_that_are_left_out_have_the_defaults_of_the_schema(nodes):
    for node in nodes.values():
        slots = [slot for slot in node.GET_SCHEMA().inputs if hasattr(slot, "default")]
        assert node.check() == {s.id: s.default for s in slots if s.default is not None}


@pytest.mark.parametrize("node_id", sorted(REQUIRED))
def test_numbers_beyond_the_limits_of_the_schema_are_refused_with_them(nodes, node_id):
    node = nodes[node_id]
    schema = node.GET_SCHEMA()
    for slot in schema.inputs:
        if not hasattr(slot, "min"):
            continue
        for wrong in (slot.min - 1, slot.max + 1, math.nan, "much"):
            with pytest.raises(ValueError) as error:
                node.check(**{slot.id: wrong})
            said = str(error.value)
            assert said.startswith(f"{schema.display_name}: {slot.id} = {wrong!r} was given;")
            assert f"number from {slot.min:g} to {slot.max:g}" in said
            assert f"The default is {slot.default}." in said
        for right in (slot.min, slot.max):
            if slot.id not in ("start_percent", "end_percent"):
                assert node.check(**{slot.id: right})[slot.id] == right


def test_unknown_choices_are_refused_with_all_that_there_are(nodes):
    for node_id, name in {(node_id, name) for node_id, name, _, _ in OLD}:
        with pytest.raises(ValueError, match=f"{name} = 'best' was given; accepted is one of "):
            nodes[node_id].check(**{name: "best"})


@pytest.mark.parametrize(("node_id", "name", "old", "new"), OLD)
def test_an_old_name_of_a_choice_is_still_accepted(nodes, validate, node_id, name, old, new):
    (slot,) = (slot for slot in nodes[node_id].GET_SCHEMA().inputs if slot.id == name)
    assert new in slot.options and old not in slot.options
    assert nodes[node_id].check(**{name: old})[name] == new
    assert validate(node_id, **{name: old}) == validate(node_id, **{name: new}) == []
    assert validate(node_id, **{name: "best"})


def test_all_old_names_are_in_the_list_above(pack_module):
    table = pack_module("nodes.base").OLD_CHOICES
    known = {(name, old, new) for _, name, old, new in OLD}
    assert known == {(name, *pair) for name, pairs in table.items() for pair in pairs.items()}


def test_the_page_learns_the_old_names(comfy_host, nodes):
    for node_id, name, old, new in OLD:
        inputs = nodes[node_id].INPUT_TYPES()["optional"]
        assert inputs[name][1]["rapid_old_choices"][old] == new


@pytest.mark.parametrize("node_id", WINDOWS)
def test_a_start_after_the_end_is_refused_before_anything_runs(nodes, validate, node_id):
    wrong = {"start_percent": 0.9, "end_percent": 0.1}
    said = "start_percent = 0.9 was given with end_percent = 0.1; start_percent must not be above"
    refused = validate(node_id, **wrong)
    assert refused and all(said in one for one in refused)
    with pytest.raises(ValueError, match=said):
        nodes[node_id].check(**wrong)
    assert validate(node_id, start_percent=0.4, end_percent=0.4) == []


@pytest.mark.parametrize("node_id", WINDOWS)
def test_values_that_come_over_links_are_checked_when_they_are_known(nodes, node_id):
    node = nodes[node_id]
    assert node.validate_inputs(start_percent=None, end_percent=0.1) is True
    assert node.validate_inputs(start_percent=0.9, end_percent=None) is True
    assert node.validate_inputs(end_percent=1.5) is not True


@pytest.mark.parametrize(
    "node_id",
    sorted(
        set(REQUIRED) - {"RAPID_LoadPolicy", "RAPID_Calibrate", "RAPID_Report", "RAPID_Compare"}
    ),
)
def test_an_api_client_may_leave_out_all_that_has_a_default(validate, node_id):
    if "model" in REQUIRED[node_id]:
        assert validate(node_id) == []


@pytest.mark.parametrize(
    "node_id, name",
    [
        ("RAPID_LoadPolicy", "policy"),
        ("RAPID_LoadLuminaNext", "model_name"),
        ("RAPID_LoadLuminaNextText", "text_encoder"),
        ("RAPID_Accelerate", "policy_file"),
    ],
)
def test_a_file_whose_name_comes_over_a_link_is_not_loaded_anew_for_every_run(nodes, node_id, name):
    """The host gives None for it, and loads again where that raises."""
    stamps = [nodes[node_id].fingerprint_inputs(**{name: None}) for _ in range(2)]
    assert stamps[0] == stamps[1]


def test_a_policy_file_that_is_not_there_is_refused_before_anything_runs(nodes):
    said = nodes["RAPID_LoadPolicy"].validate_inputs(policy="none.safetensors")
    assert said.startswith("RAPID Load Policy: policy = 'none.safetensors' was given; there is ")


WIDGETS = {  # saved workflows hold their values by place: new ones come at the end
    "RAPID_Accelerate": [
        "speedup",
        "mode",
        "closeness",
        "decibels",
        "aim",
        "start_percent",
        "end_percent",
        "even_so",
        "learn",
        "policy_file",
    ],
    "RAPID_CacheReuse": [
        "reuse_threshold",
        "start_percent",
        "end_percent",
        "max_consecutive",
        "forecast_order",
        "level",
        "guard",
        "even_so",
    ],
}


@pytest.mark.parametrize("node_id", WIDGETS)
def test_the_places_of_widgets_stay(nodes, node_id):
    slots = nodes[node_id].GET_SCHEMA().inputs
    assert [slot.id for slot in slots if hasattr(slot, "default")] == WIDGETS[node_id]


@pytest.mark.parametrize("wrong", ["yes", 1, 0.0])
def test_a_switch_is_true_or_false(nodes, wrong):
    with pytest.raises(ValueError, match=r"even_so = .* was given; accepted is true or false\."):
        nodes["RAPID_Accelerate"].check(even_so=wrong)
    assert nodes["RAPID_Accelerate"].check(even_so=True)["even_so"] is True


@pytest.mark.parametrize("name", ["mode", "closeness", "aim"])
def test_accelerates_choices_are_refused_before_anything_runs(nodes, validate, name):
    assert validate("RAPID_Accelerate", **{name: "best"})
    with pytest.raises(ValueError, match=f"RAPID Accelerate: {name} = 'best' was given; accepted"):
        nodes["RAPID_Accelerate"].check(**{name: "best"})


def test_errors_of_the_core_show_their_words_first(pack_module):
    class OfTheCore(ValueError):
        pass

    with pytest.raises(ValueError, match="^words$") as error:
        with pack_module("nodes.base").words_first():
            raise OfTheCore("words")
    assert type(error.value) is ValueError
