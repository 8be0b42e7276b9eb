"""Every node once, in the real ComfyUI: a picture comes out, and RAPID Report says how."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from devkit.base_folder import REPOSITORY
from rapid_testing.frozen import NODES
from rapid_testing.sampling import empty_latent, make_conditioning, sample
from rapid_testing.texts import text

pytestmark = pytest.mark.quick
STEPS = 10


@pytest.fixture
def run(comfy_host, pack):
    """run("RAPID_Accelerate", speedup=2.0, ...): outputs of a node; other inputs are the schema's
    defaults."""

    def run(node_id, **inputs):
        schema = comfy_host.nodes.NODE_CLASS_MAPPINGS[node_id].GET_SCHEMA()
        defaults = {
            slot.id: slot.default
            for slot in schema.inputs
            if getattr(slot, "default", None) is not None
        }
        return comfy_host.run_node(node_id, **{**defaults, **inputs})

    return run


@pytest.fixture
def reported(comfy_host, run):
    """reported(model, latent): the record that RAPID Report shows for a latent, which it passes
    on, beside a text and a map."""

    def reported(model, latent):
        latents = {"samples": latent}
        passed, text, picture, few = run("RAPID_Report", model=model, latent=latents)
        assert passed["samples"] is latent and text.startswith("RAPID") and few["seconds"] > 0
        assert picture.ndim == 4 and picture.shape[-1] == 3
        node = comfy_host.nodes.NODE_CLASS_MAPPINGS["RAPID_Report"].PREPARE_CLASS_CLONE(None)
        (record,) = node.execute(model=model, latent=latents).ui["rapid_record"]
        return json.loads(record)

    return reported


@pytest.fixture
def demo_flux(comfy_host, demo_pack):
    """The FLUX-like demo model, and what samples it for a prompt."""
    (model,) = comfy_host.run_node(
        "UNETLoader", unet_name="flux.safetensors", weight_dtype="default"
    )
    (positive,) = comfy_host.run_node("RAPIDDemoPrompt", text=text("grid"), model="flux")
    return model, positive


def check_saving(record, evaluations):
    """Fewer FLOPs were spent than for as many evaluations as the first one, which is full."""
    rows = record["evaluations"]
    assert record["status"] == "finished" and len(rows) == evaluations
    spent = sum(row["cost"][0] for row in rows)
    assert 0 < spent < 0.99 * evaluations * rows[0]["cost"][0]


@pytest.mark.parametrize("name", ["accelerate 2", "skip", "region", "sparse"])
def test_a_node_that_patches_a_model_saves_and_says_so(run, reported, tiny_flux, name):
    node_id, settings = NODES[name]
    full = sample(tiny_flux, steps=STEPS)
    (model,) = run(node_id, model=tiny_flux, **settings)
    latent = sample(model, steps=STEPS)
    assert latent.shape == full.shape and latent.isfinite().all()
    assert latent.std() > 0.01 and not torch.equal(latent, full)
    check_saving(reported(model, latent), STEPS)


def test_a_loaded_policy_chooses_the_steps_of_accelerate(run, reported, demo_flux):
    model, positive = demo_flux
    policy, *_ = run("RAPID_LoadPolicy", policy="demo-flux-gaps.safetensors")
    (model,) = run("RAPID_Accelerate", model=model, speedup=2.0, policy=policy)
    latent = sample(model, steps=28, positive=positive)
    record = reported(model, latent)
    assert latent.isfinite().all() and record["totals"]["computed"] == 14
    check_saving(record, 28)


def test_a_threshold_that_skips_nothing_is_told_with_one_that_skips_about_a_third(
    run, reported, demo_flux
):
    model, positive = demo_flux

    def record(threshold):
        (patched,) = run("RAPID_CacheReuse", model=model, reuse_threshold=threshold)
        return reported(patched, sample(patched, steps=28, positive=positive))

    (note,) = record(0.001)["notes"]
    assert note["code"] == "little_threshold"
    better = record(note["params"]["needed"])
    assert 0.2 < better["totals"]["skipped"] / 28 < 0.5 and better["notes"] == []


@pytest.fixture
def heads(pack):
    """The name of a policy file with a step head, which lies where ComfyUI looks for such files."""
    import folder_paths

    folder = Path(folder_paths.get_folder_paths("rapid_policies")[0])
    file = REPOSITORY / "benchmarks" / "policies" / "demo-flux-rapid3.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / f"every-node-{file.name}"
    shutil.copyfile(file, copy)
    yield copy.name
    copy.unlink()


def test_the_policy_sampler_takes_fewer_steps(run, reported, demo_flux, heads):
    import comfy.sample
    import comfy.samplers

    model, positive = demo_flux
    policy, *_ = run("RAPID_LoadPolicy", policy=heads)
    (sampler,) = run("RAPID_PolicySampler", policy=policy, speedup=2.0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 28)
    latent = empty_latent()
    noise = comfy.sample.prepare_noise(latent, 3)
    with torch.inference_mode():
        drawn = comfy.sample.sample_custom(
            model, noise, 1.0, sampler, sigmas, positive, positive, latent, disable_pbar=True
        ).clone()
    record = reported(model, drawn)
    assert drawn.isfinite().all() and record["status"] == "finished"
    assert 0 < record["totals"]["computed"] <= 14


def test_a_calibration_makes_a_file_that_accelerate_goes_by(run, reported, tiny_flux):
    import comfy.samplers
    import folder_paths

    sampling = tiny_flux.get_model_object("model_sampling")
    policy, about, plot = run(
        "RAPID_Calibrate",
        model=tiny_flux,
        cfg=1.0,
        positive=make_conditioning(0),
        negative=make_conditioning(1),
        sampler=comfy.samplers.sampler_object("euler"),
        sigmas=comfy.samplers.calculate_sigmas(sampling, "simple", STEPS),
        latent_image={"samples": empty_latent()},
        name="every-node",
        effort="few",
    )
    file = Path(folder_paths.models_dir, "rapid_policies", policy.name)
    assert file.is_file() and about.startswith(file.name) and plot.ndim == 4
    file.unlink()
    (model,) = run("RAPID_Accelerate", model=tiny_flux, speedup=2.0, policy=policy)
    check_saving(reported(model, sample(model, steps=STEPS)), STEPS)


def test_two_pictures_are_compared(run):
    a, b = torch.zeros(1, 16, 16, 3), torch.full((1, 16, 16, 3), 0.01)
    where, said = run("RAPID_Compare", picture_a=a, picture_b=b)
    assert where.shape == a.shape and said.startswith("PSNR 40.0 dB, SSIM 0.")


def test_all_nodes_are_run_here(comfy_host, pack):
    nodes = {NODES[name][0] for name in ("accelerate 2", "skip", "region", "sparse")}
    others = {"RAPID_LoadPolicy", "RAPID_Calibrate", "RAPID_PolicySampler", "RAPID_Report"}
    others |= {"RAPID_LoadLuminaNext", "RAPID_LoadLuminaNextText"}  # in test_lumina_next.py
    others.add("RAPID_Compare")
    offered = {name for name in comfy_host.pack_nodes() if name.startswith("RAPID_")}
    assert offered == nodes | others
