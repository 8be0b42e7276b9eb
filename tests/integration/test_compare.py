"""RAPID Compare's node, and what RAPID Report says where there is no record, in the real ComfyUI."""

import json
from types import SimpleNamespace

import pytest
import torch

from rapid_testing.sampling import sample


@pytest.fixture(scope="module")
def compare(pack_module):
    """RAPID Compare's class."""
    return pack_module("nodes.compare").Compare


def test_a_comparison_is_given_as_json_with_the_records_numbers(
    compare, pack_module, tiny_flux, accelerate
):
    model = accelerate(tiny_flux)
    latent = {"samples": sample(model, steps=10)}
    report = pack_module("nodes.report").Report.execute(model, latent)
    (few,) = report.ui["rapid_summary"]
    assert report.args[3] == few and few["skipped"] > 0
    full = pack_module("rapid_core.summary").full_summary(4.0, 10)
    a, b = torch.rand(2, 16, 24, 3), torch.rand(2, 16, 24, 3)
    out = compare.execute(a, b, record_a=full, record_b=few)
    (about,) = out.ui["rapid_compare"]
    assert json.loads(json.dumps(about, allow_nan=False)) == about
    assert about["seconds_a"] == 4.0 and about["seconds_b"] == few["seconds"]
    assert about["verdict"] == "poor" and len(about["pairs"]) == 2
    assert all(len(out.ui[f"rapid_compare_{name}"]) == 2 for name in ("a", "b", "difference"))
    assert out.args[0].shape == (2, 16, 24, 3)
    assert "A took 4.0 s" in out.args[1] and "PSNR" in out.args[1]


def test_pictures_that_are_the_same_are_said_to_be(compare):
    a = torch.rand(1, 16, 16, 3)
    out = compare.execute(a, a.clone())
    assert out.args[1] == "the pictures are the same: good"
    assert out.ui["rapid_compare"][0]["seconds_a"] is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "RAPID Compare: picture_a of 16 x 16 and picture_b of 24 x 16 pixels were given"),
        ({"record_a": {"format": "rapid-record", "version": 9}}, "picture_a of 16 x 16"),
    ],
)
def test_pictures_of_different_sizes_are_refused_with_both(compare, given, words):
    with pytest.raises(ValueError, match=words):
        compare.execute(torch.rand(1, 16, 16, 3), torch.rand(1, 16, 24, 3), **given)


def test_a_record_of_a_newer_version_is_refused_by_the_name_of_its_input(compare):
    a = torch.rand(1, 16, 16, 3)
    with pytest.raises(
        ValueError, match="RAPID Compare: record_b: a record of format .* version 9"
    ):
        compare.execute(a, a, record_b={"format": "rapid-record", "version": 9})
    with pytest.raises(ValueError, match="RAPID Compare: record_a: something else than a record"):
        compare.execute(a, a, record_a="nonsense")


@pytest.mark.parametrize("kind", ["EasyCache", "LazyCache"])
def test_a_report_names_another_node_that_skips_on_the_same_model(
    comfy_host, tiny_flux, accelerate, record_of, kind
):
    comfy_host.load_core_nodes("nodes_easycache.py")
    settings = dict(reuse_threshold=0.2, start_percent=0.15, end_percent=0.95, verbose=False)
    (cached,) = comfy_host.run_node(kind, model=tiny_flux, **settings)
    model = accelerate(cached)
    sample(model, steps=10)
    notes = [n for n in record_of(model).notes if n.code == "both_skip"]
    assert [note.params["node"] for note in notes] == [kind]


class Graph:
    """As the host's DynamicPrompt: nodes by id."""

    def __init__(self, **nodes):
        self.nodes = nodes

    def get_node(self, name):
        return self.nodes[name]


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def graph(wire, second="RAPID_Accelerate"):
    """loader -> first -> second RAPID node -> sampler -> report, whose model comes from `wire`."""
    return Graph(
        loader=node("UNETLoader"),
        first=node("RAPID_CacheReuse", model=["loader", 0]),
        second=node(second, model=["first", 0]),
        sampler=node("KSampler", model=["second", 0], latent_image=["other", 0], seed=3),
        other=node("KSampler", model=["stranger", 0]),
        stranger=node("RAPID_RegionAdaptive", model=["loader", 0]),
        report=node("RAPID_Report", model=[wire, 0], latent=["sampler", 0]),
    )


@pytest.mark.parametrize(
    ("wire", "code"),
    [("loader", "wrong_model"), ("first", "wrong_model"), ("second", "not_patched")],
)
def test_a_wire_from_before_the_last_rapid_node_has_words_of_its_own(
    pack_module, tiny_flux, wire, code
):
    hidden = SimpleNamespace(unique_id="report", dynprompt=graph(wire))
    reason, few = pack_module("nodes.report").without_record(tiny_flux, hidden)
    assert (reason.code, few) == (code, None)


def test_a_full_run_has_the_time_that_its_sampler_took(pack_module, tiny_flux):
    """By the host's own progress: the first step is counted as the others."""
    clock = pack_module("rapid_core.comfy.clock")
    hidden = SimpleNamespace(unique_id="report", dynprompt=graph("second"))
    without_record = pack_module("nodes.report").without_record
    clock.start()
    told = clock.get_progress_state().handlers[clock.NAME]
    for step in range(1, 11):
        told.update_handler("sampler", step, 10, {}, "run")
    told.first["sampler"] = (1, 100.0)
    told.last["sampler"] = (10, 10, 118.0)
    reason, few = without_record(tiny_flux, hidden)
    assert (reason.code, reason.params) == ("full_run", {"seconds": 20.0, "steps": 10})
    assert few["seconds"] == 20.0 and few["full"] is True
    told.update_handler("sampler", 1, 10, {}, "run")  # another run of it, which ends too early
    assert without_record(tiny_flux, hidden)[0].code == "not_patched"
    clock.get_progress_state().unregister_handler(clock.NAME)


def test_what_a_report_needs_is_asked_for_when_the_clock_runs(pack_module):
    clock = pack_module("rapid_core.comfy.clock")
    report = pack_module("nodes.report").Report
    assert report.check_lazy_status(model=1, latent=None, picture=None) == ["latent", "picture"]
    assert report.check_lazy_status(model=1, latent=2) == []
    assert clock.NAME in clock.get_progress_state().handlers
    clock.get_progress_state().unregister_handler(clock.NAME)
