"""The example workflows: every node, input, link and value is one that ComfyUI has."""

import asyncio
import copy
import json
from types import SimpleNamespace

import pytest
import torch

from devkit.base_folder import REPOSITORY
from rapid_testing.families import LTX_AUDIO
from rapid_testing.sampling import make_conditioning
from rapid_testing.workflows import FILES, fits, problems

EXAMPLES = sorted((REPOSITORY / "example_workflows" / "api").glob("*.json"))
NAMES = [path.stem for path in EXAMPLES]
CORE = (
    "custom_sampler",
    "flux",
    "lt",
    "lt_audio",
    "sd3",
    "model_advanced",
    "lumina2",
    "qwen",
    "edit_model",
    "cfg",
    "hunyuan",
    "video",
    "preview_any",
    "primitive",
)
PATCHES = {"RAPID_Accelerate", "RAPID_CacheReuse", "RAPID_RegionAdaptive"}
SAMPLERS = {"KSampler", "KSamplerAdvanced", "SamplerCustom"}
SAVERS = {"SaveImage", "SaveVideo"}
FAMILY = {
    "flux1_dev": "flux",
    "flux1_kontext": "flux",
    "sd3.5_large": "sd35",
    "lumina2": "lumina2",
    "lumina_next": "lumina_next",
    "z_image": "z_image",
    "qwen_image": "qwen_image",
    "qwen_image_edit": "qwen_image",
    "wan2.2_t2v": "wan",
    "compare_full_and_rapid": "z_image",
    "flux2_dev": "flux2",
    "ltx2": "ltx2",
    "region_mask": "flux",
}
CALIBRATES = "calibrate"  # tests/integration/test_calibrate.py runs its node


@pytest.fixture(scope="module")
def registered(comfy_host, pack, demo_pack):
    """Node classes by id, the core's extra ones too."""
    for name in CORE:
        comfy_host.load_core_nodes(f"nodes_{name}.py")
    return comfy_host.nodes.NODE_CLASS_MAPPINGS


def read(name):
    return json.loads(
        (REPOSITORY / "example_workflows" / "api" / f"{name}.json").read_text(encoding="utf-8")
    )


def of_kind(graph, kinds):
    return [name for name, node in graph.items() if node["class_type"] in kinds]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_wrong_with_an_example(registered, name):
    """Of the demo models the files are there as well."""
    assert problems(read(name), registered, files=name.startswith("demo_")) == []


@pytest.mark.parametrize("name", NAMES)
def test_comfyui_refuses_nothing_but_files_that_are_not_there(registered, name):
    import execution

    graph = read(name)
    errors = asyncio.run(execution.validate_prompt(name, copy.deepcopy(graph), None))[3]
    refused = {
        (node, error["extra_info"].get("input_name"))
        for node, refusal in errors.items()
        for error in refusal["errors"]
    }
    absent = {
        (i, key)
        for i, node in graph.items()
        for key in node["inputs"]
        if (node["class_type"], key) in FILES
    }
    assert refused == (set() if name.startswith("demo_") else absent)


@pytest.mark.parametrize("name", [name for name in NAMES if name != CALIBRATES])
def test_each_sampler_has_a_rapid_node_and_a_report_of_its_own(name):
    graph = read(name)
    samplers = of_kind(graph, SAMPLERS)
    inputs = [graph[report]["inputs"] for report in of_kind(graph, {"RAPID_Report"})]
    reports = {given["latent"][0]: given for given in inputs}
    assert samplers and sorted(reports) == sorted(samplers)
    patches = [graph[sampler]["inputs"]["model"][0] for sampler in samplers]
    assert len(set(patches)) == len(samplers)
    full = [patch for patch in patches if graph[patch]["class_type"] not in PATCHES]
    assert len(full) == len(of_kind(graph, {"RAPID_Compare"}))  # which compares with it
    assert [reports[sampler]["model"][0] for sampler in samplers] == patches
    assert of_kind(graph, SAVERS)


@pytest.mark.parametrize("name", NAMES)
def test_every_node_of_an_example_has_a_title_and_an_id_in_words(name):
    for key, node in read(name).items():
        assert node["_meta"]["title"] and not key.isdigit()


STOOD_IN = (
    "UNETLoader",
    "CheckpointLoader",
    "LoadImage",
    "LTXVConcatAVLatent",
    "RAPID_LoadLumina",
    "CLIPTextEncode",
    "TextEncode",
    "VAEEncode",
    "Empty",
)


def stand_in(kind, name, tiny):
    """Outputs of a node that would need a file, or a picture's size: random tensors, and a mask of
    one half."""
    if kind == "LoadImage":
        return torch.rand(1, 64, 64, 3), torch.cat(
            [torch.zeros(1, 64, 32), torch.ones(1, 64, 32)], -1
        )
    if "Load" in kind:
        return (tiny.model.clone(),)
    if "TextEncode" in kind:
        ((text, more),) = tiny.conditioning(int(name == "negative"))
        if "Edit" in kind:
            more["reference_latents"] = [torch.randn_like(tiny.latent)]
        return ([[text, more]],)
    if kind == "VAEEncode":
        return ({"samples": torch.randn_like(tiny.latent)},)
    return ({"samples": tiny.latent},)


def reports_of(comfy_host, graph, tiny):
    """Text of the report on each sampler of a workflow, run by its own nodes."""
    done = {}

    def outputs(name):
        kind = graph[name]["class_type"]
        given = graph[name]["inputs"]
        if name not in done and kind.startswith(STOOD_IN):
            done[name] = stand_in(kind, name, tiny)
        elif name not in done:
            inputs = {
                k: outputs(v[0])[v[1]] if isinstance(v, list) else v
                for k, v in given.items()
                if k != "picture"
            }
            done[name] = comfy_host.run_node(kind, **inputs)
        return done[name]

    return {
        graph[name]["inputs"]["latent"][0]: outputs(name)[1]
        for name in of_kind(graph, {"RAPID_Report"})
    }


@pytest.fixture
def tiny(family):
    """tiny(kind): a random model, an empty latent for it, and conditionings by number."""

    def get(kind):
        if kind == "ltx2":
            return SimpleNamespace(
                model=LTX_AUDIO.build(),
                latent=LTX_AUDIO.empty_latent(),
                conditioning=LTX_AUDIO.conditioning,
            )
        model, shape = family(kind)
        return SimpleNamespace(
            model=model, latent=torch.zeros(1, *shape), conditioning=make_conditioning
        )

    return get


def steps_of(graph, sampler):
    """How many steps a sampler takes."""
    given = graph[sampler]["inputs"]
    if "sigmas" in given:
        return graph[given["sigmas"][0]]["inputs"]["steps"]
    last = min(given.get("end_at_step", given["steps"]), given["steps"])
    return last - given.get("start_at_step", 0)


@pytest.mark.parametrize("name", FAMILY)
def test_an_example_samples_and_reports_on_a_tiny_model(registered, comfy_host, tiny, name):
    """What is asked of RAPID Accelerate is kept to; on random weights the others may skip
    nothing."""
    graph = read(name)
    for sampler, report in reports_of(comfy_host, graph, tiny(FAMILY[name])).items():
        patch = graph[graph[sampler]["inputs"]["model"][0]]["class_type"]
        if patch not in PATCHES:
            assert "it was computed in full" in report
            continue
        steps = steps_of(graph, sampler)
        assert "finished" in report and f"of {steps} evaluations computed" in report
        if patch == "RAPID_Accelerate":
            assert f"{steps // 2} of {steps} evaluations computed" in report


def test_every_example_is_run_somewhere():
    assert {name for name in NAMES if not name.startswith("demo_")} == {*FAMILY, CALIBRATES}


BREAKAGES = {
    "no node KSampler3 is registered": lambda g: g["sample"].update(class_type="KSampler3"),
    "sample.steps: is required": lambda g: g["sample"]["inputs"].pop("steps"),
    "sample.strength: there is no such input": lambda g: g["sample"]["inputs"].update(strength=1.0),
    "sample.cfg: 101.0 is outside 0.0 .. 100.0": lambda g: g["sample"]["inputs"].update(cfg=101.0),
    "sample.steps: 2.5 is no INT": lambda g: g["sample"]["inputs"].update(steps=2.5),
    "sample.steps: True is no INT": lambda g: g["sample"]["inputs"].update(steps=True),
    "sample.sampler_name: 'eulr' is none of": lambda g: g["sample"]["inputs"].update(
        sampler_name="eulr"
    ),
    "sample.model: 'flux' is written where a link": lambda g: g["sample"]["inputs"].update(
        model="flux"
    ),
    "latent.width: 1020 is no multiple of 16": lambda g: g["latent"]["inputs"].update(width=1020),
    "sample.model: takes MODEL; output 0 of clip is": lambda g: g["sample"]["inputs"].update(
        model=["clip", 0]
    ),
    "sample.model: is linked to output 1 of model": lambda g: g["sample"]["inputs"].update(
        model=["model", 1]
    ),
    "report.picture: is linked to nowhere": lambda g: g["report"]["inputs"].update(
        picture=["nowhere", 0]
    ),
    "clip.type: 'flx' is none of": lambda g: g["clip"]["inputs"].update(type="flx"),
    "model.unet_name: 'flux1-dev' is none of": lambda g: g["model"]["inputs"].update(
        unet_name="flux1-dev"
    ),
    "guidance: nothing that is shown or saved": lambda g: g["sample"]["inputs"].update(
        positive=["positive", 0]
    ),
}


@pytest.mark.parametrize("words", BREAKAGES)
def test_a_broken_workflow_is_said_to_be_broken(registered, words):
    graph = read("flux1_dev")
    BREAKAGES[words](graph)
    (problem,) = problems(graph, registered)
    assert words in problem


def test_a_model_file_that_is_not_there_is_found_when_asked_for(registered):
    missing = problems(read("flux1_dev"), registered, files=True)
    assert {problem.split(":")[0] for problem in missing} == {
        "model.unet_name",
        "clip.clip_name1",
        "clip.clip_name2",
        "vae.vae_name",
    }


@pytest.mark.parametrize(
    "given, accepted, right",
    [
        ("MODEL", "MODEL", True),
        ("MODEL", "CLIP", False),
        ("IMAGE", "*", True),
        ("INT", "FLOAT,INT", True),
    ],
)
def test_types_fit_when_they_have_one_in_common(given, accepted, right):
    assert fits(given, accepted) is right
