"""RAPID Calibrate in the real ComfyUI, on tiny models: the file that it writes, and what it refuses."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from rapid_core.calibration.plans import EFFORTS
from rapid_core.quadrature.spacing import best_spaced, evenly_spaced
from rapid_testing.loras import with_lora
from rapid_testing.sampling import empty_latent, make_conditioning, sample

STEPS = 12
# In float64 they fall, and as a file has them they do not.
TOO_NEAR = torch.tensor([1.0, 0.9, 0.8, 0.8 - 1e-10, 0.6, 0.5, 0.4, 0.2, 0.0], dtype=torch.float64)


@pytest.fixture
def room(pack_module):
    """room(name): a module of what calibrates."""
    return lambda name: pack_module(f"rapid_core.comfy.calibrate.{name}")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where this test's files are written."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    return tmp_path / "rapid_policies"


@pytest.fixture
def inputs(comfy_host, pack):
    """inputs(model, ...): what the node is given, by name."""
    import comfy.samplers

    def inputs(model, sampler="euler", steps=STEPS, latent=None, **given):
        sampling = model.get_model_object("model_sampling")
        values = {
            "model": model,
            "noise_seed": 5,
            "cfg": 1.0,
            "positive": make_conditioning(0),
            "negative": make_conditioning(1),
            "sampler": comfy.samplers.sampler_object(sampler),
            "sigmas": comfy.samplers.calculate_sigmas(sampling, "simple", steps),
            "latent_image": {"samples": empty_latent() if latent is None else latent},
            "name": "mine",
            "effort": "few",
        }
        return {**values, **given}

    return inputs


@pytest.fixture
def calibrate(comfy_host, inputs, folder):
    """calibrate(model, ...): policy, about and plot of the node."""
    return lambda model, **given: comfy_host.run_node("RAPID_Calibrate", **inputs(model, **given))


@pytest.fixture
def drawn(room, monkeypatch):
    """(seed, share of a full picture) of every picture that was drawn to its end."""
    drawn = []
    drawer = room("drawer").Drawer
    draw = drawer._draw

    def counted(self, number, policy, cost, shown=None):
        out = draw(self, number, policy, cost, shown)
        drawn.append((number, policy.schedule and policy.schedule.computed, cost))
        return out

    monkeypatch.setattr(drawer, "_draw", counted)
    return drawn


@pytest.fixture
def interrupt(monkeypatch):
    """interrupt(n): the user cancels within the picture after n whole ones; None for never."""
    import comfy.model_management
    import comfy.sample

    whole = comfy.sample.sample_custom
    state = {"left": None}

    def sample_custom(*args, callback=None, **named):
        if state["left"] is not None:
            if state["left"] == 0:

                def callback(step, *_):
                    if step == 3:
                        raise comfy.model_management.InterruptProcessingException

            state["left"] -= 1
        return whole(*args, callback=callback, **named)

    monkeypatch.setattr(comfy.sample, "sample_custom", sample_custom)
    return lambda number: state.update(left=number)


@pytest.mark.parametrize("effort", ["few", pytest.param("normal", marks=pytest.mark.main_host)])
def test_accelerate_takes_the_file_at_any_speedup(
    calibrate, accelerate, record_of, folder, drawn, tiny_model, effort
):
    before = dict(tiny_model.model_options)
    policy, about, plot = calibrate(tiny_model, effort=effort)
    assert [path.name for path in folder.iterdir()] == ["mine.safetensors"]
    assert tiny_model.model_options == before and not tiny_model.wrappers
    spent = sum(cost for *_, cost in drawn)
    assert spent <= {"few": 10, "normal": 40}[effort] + 1e-9 and f"{spent:.1f}" in about
    assert plot.shape == (1, 480, 720, 3) and 0 <= plot.min() < plot.max() <= 1
    said = policy.metadata
    assert policy.budgets == (1.5, 2.0, 2.5, 3.0, 4.0, 5.0) and policy.kind == "schedule"
    assert said["sampler"] == "euler" and said["guidance"] == "CFGGuider 1"
    assert len(said["weights"]) == 16 and said["base_model"].endswith("0.safetensors")
    assert len(json.loads(said["measured_psnr"])) == 6
    for speedup in (1.2, 1.5, 2.0, 2.2, 3.5, 6.0):
        patched = accelerate(tiny_model, speedup, policy=policy)
        latent = sample(patched, steps=STEPS, seed=3)
        strip = record_of(patched).strip(0)
        assert latent.isfinite().all() and strip.count("#") <= max(1, math.floor(STEPS / speedup))


@pytest.mark.main_host
def test_several_prompts_are_drawn_in_turn(calibrate, folder, tiny_flux, monkeypatch):
    import comfy.sample

    seen = []
    draw = comfy.sample.sample_custom

    def watched(model, noise, cfg, sampler, sigmas, positive, *rest, **named):
        seen.append((named["seed"], positive[0][0]))
        return draw(model, noise, cfg, sampler, sigmas, positive, *rest, **named)

    monkeypatch.setattr(comfy.sample, "sample_custom", watched)
    more = {f"positive_{n}": make_conditioning(n) for n in (2, 3)}
    policy, _, _ = calibrate(tiny_flux, effort="normal", **more)
    pictures = EFFORTS["normal"].pictures
    texts = [make_conditioning(n)[0][0] for n in (0, 2, 3)]
    assert policy.metadata["measured_prompts"] == "3" and len({s for s, _ in seen}) == pictures
    assert all(torch.equal(text, texts[(seed - 5) % 3]) for seed, text in seen)


def test_what_is_finished_is_not_drawn_again(calibrate, folder, drawn, tiny_flux):
    """As after a restart, with the node still in the graph."""
    policy, about, plot = calibrate(tiny_flux, effort="few")
    number = len(drawn)
    again = calibrate(tiny_flux, effort="few")
    assert len(drawn) == number and again[1] == about and (again[2] == plot).all()
    assert again[0].path == policy.path
    calibrate(tiny_flux, effort="few", noise_seed=99)
    assert len(drawn) > number


def test_a_file_that_was_deleted_is_made_again(
    calibrate, comfy_host, folder, tiny_flux, monkeypatch
):
    """The host would take what the node gave before, were its fingerprint the same."""
    import folder_paths

    known = ([str(folder)], {".safetensors"})  # where the host looks for files, as in a server
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "rapid_policies", known)
    node = comfy_host.nodes.NODE_CLASS_MAPPINGS["RAPID_Calibrate"]
    policy, _, _ = calibrate(tiny_flux, effort="few")
    names = (policy.path.stem, f" {policy.path.name}")  # both are accepted for it
    there = [node.fingerprint_inputs(name=name) for name in names]
    assert there == [node.fingerprint_inputs(name=name, effort="few") for name in names]
    policy.path.unlink()
    assert all(node.fingerprint_inputs(name=n) != t for n, t in zip(names, there, strict=True))
    assert calibrate(tiny_flux, effort="few")[0].path.is_file()


@pytest.mark.parametrize("plan_of", [best_spaced, evenly_spaced])
def test_a_file_that_changes_nothing_says_so(calibrate, room, folder, tiny_flux, plan_of):
    card = room("card")
    policy, _, _ = calibrate(tiny_flux, effort="few")
    tensors = dict(policy.tensors)
    sigmas = tuple(tensors["sigmas"].tolist())
    for i, plan in enumerate(card.schedules_of(policy)):
        where = sigmas if plan_of is best_spaced else STEPS
        computed = plan_of(sum(plan.computed), where)
        tensors[f"plan.{i}.computed"] = torch.tensor(computed, dtype=torch.uint8)
    file = replace(policy, tensors=tensors)
    said = card.about(card.Calibrated(file, [], 1, 1.0, 10.0))
    assert said.endswith(card.SAME) == (plan_of is best_spaced)


def test_figures_are_those_of_pictures(calibrate, accelerate, folder, inputs, tiny_flux):
    """At 2x the file's plan is drawn as SamplerCustom draws it, and gives the closeness that it says."""
    from rapid_core.calibration.search import latent_psnr

    policy, *_ = calibrate(tiny_flux, cfg=2.5)
    found = []
    for seed in (5, 6):
        full = sample(tiny_flux, steps=STEPS, cfg=2.5, seed=seed)
        patched = accelerate(tiny_flux, 2.0, policy=policy, even_so=True)
        found.append(latent_psnr(sample(patched, steps=STEPS, cfg=2.5, seed=seed), full))
    said = json.loads(policy.metadata["measured_psnr"])[1]
    assert sum(found) / 2 == pytest.approx(said, abs=0.02)


def test_cancel_keeps_what_was_drawn_and_the_next_start_goes_on(
    calibrate, folder, drawn, interrupt, tiny_flux
):
    import comfy.model_management

    calibrate(tiny_flux, name="whole")
    whole = list(drawn)
    for number in (0, 2, 6):
        (folder / "mine.safetensors").unlink(missing_ok=True)
        drawn.clear()
        interrupt(number)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            calibrate(tiny_flux)
        assert len(drawn) == number and not (folder / "mine.safetensors").exists()
        assert (folder / "mine.calibration.json").exists() == (number > 0)
        interrupt(None)
        calibrate(tiny_flux)
        assert drawn == whole
        assert sorted(path.name for path in folder.iterdir()) == [
            "mine.safetensors",
            "whole.safetensors",
        ]


@pytest.mark.main_host
def test_other_inputs_start_anew_and_lost_latents_are_drawn_again(
    calibrate, folder, drawn, interrupt, tiny_flux
):
    import comfy.model_management

    def cancelled(number, model=tiny_flux, **given):
        """Numbers of the pictures that were drawn until Cancel, after so many."""
        drawn.clear()
        interrupt(number)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            calibrate(model, **given)
        interrupt(None)
        return [number for number, *_ in drawn]

    for change in (
        dict(positive=make_conditioning(7)),
        dict(cfg=2.0),
        dict(latent=empty_latent(2)),
        dict(noise_seed=6),
        dict(model=with_lora(tiny_flux)),
        dict(sampler="dpmpp_2m"),
    ):
        assert cancelled(2) == [0, 1]
        assert cancelled(2) == [2, 3]
        assert cancelled(3, **change) == [0, 1, 2]
    assert cancelled(4) == [0, 1, 2, 3]
    (folder / "mine.calibration.latents").unlink()
    drawn.clear()
    _, about, _ = calibrate(tiny_flux)
    assert [number for number, plan, _ in drawn if plan is None] == [0, 1, 2, 3]
    assert "of 10 at the most" in about and float(about.split("as long as ")[1].split()[0]) <= 10


def test_a_short_one_leaves_what_a_longer_one_has_drawn(
    calibrate, folder, drawn, interrupt, tiny_flux
):
    """Who is content with few for now loses nothing of the long one that was cancelled."""
    import comfy.model_management

    interrupt(14)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        calibrate(tiny_flux, effort="normal")
    interrupt(None)
    before = list(drawn)
    calibrate(tiny_flux, effort="few")
    assert (folder / "mine.safetensors").exists()
    drawn.clear()
    interrupt(2)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        calibrate(tiny_flux, effort="normal")
    assert len(before) == 14 and len(drawn) == 2
    assert not {(number, plan) for number, plan, _ in drawn} & {(n, plan) for n, plan, _ in before}


def test_other_inputs_that_are_cancelled_at_once_leave_what_was_drawn(
    calibrate, folder, drawn, interrupt, tiny_flux
):
    import comfy.model_management

    for number, change in ((3, {}), (0, dict(cfg=2.0)), (0, {})):
        interrupt(number)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            calibrate(tiny_flux, **change)
    interrupt(None)
    assert [number for number, *_ in drawn] == [0, 1, 2]
    calibrate(tiny_flux)
    assert [number for number, plan, _ in drawn if plan is None] == [0, 1, 2, 3]


def test_inputs_are_told_by_what_other_nodes_do_to_guidance(
    room, inputs, folder, comfy_host, tiny_flux
):
    """Else a finished file would pass for one of the workflow as it is now."""
    workflow_of = room("workflow")
    for name in ("nodes_model_advanced.py", "nodes_slg.py", "nodes_apg.py"):
        comfy_host.load_core_nodes(name)

    def told(model):
        values = inputs(model, cfg=2.5)
        values["latent"] = values.pop("latent_image")
        values["positives"] = [values.pop("positive")]
        workflow = workflow_of.Workflow(
            **{name: v for name, v in values.items() if name not in ("name", "effort")}
        )
        return workflow_of.inputs_of(workflow, room("accepted").check(workflow)[0])

    def with_node(node, **given):
        return comfy_host.run_node(node, model=tiny_flux, **given)[0]

    def skipping(layers, scale=3.0):
        given = dict(start_percent=0.01, end_percent=0.15, double_layers=layers)
        return with_node("SkipLayerGuidanceDiT", scale=scale, single_layers="", **given)

    apg = dict(eta=1.0, norm_threshold=5.0, momentum=0.5)
    models = [
        tiny_flux,
        with_node("RescaleCFG", multiplier=0.7),
        with_node("RescaleCFG", multiplier=0.3),
        skipping("0"),
        skipping("0, 1"),
        skipping("0", scale=2.0),
        with_node("APG", **apg),
        with_node("APG", **{**apg, "eta": 0.5}),
    ]
    different = [told(model) for model in models]
    assert len(set(different)) == len(different)
    assert told(with_node("RescaleCFG", multiplier=0.7)) == different[1]
    sample(models[6], steps=STEPS, cfg=2.5)  # its running mean is another now
    assert told(models[6]) == told(with_node("APG", **apg)) == different[6]


def test_inputs_are_told_by_what_decides_pictures(room, inputs, folder, tiny_flux):
    workflow_of = room("workflow")

    def told(control=None, **given):
        values = inputs(tiny_flux, **given)
        if control is not None:
            values["positive"] = make_conditioning(0, control=control)
        values["latent"] = values.pop("latent_image")
        values["positives"] = [values.pop("positive"), *values.pop("others", ())]
        workflow = workflow_of.Workflow(
            **{name: v for name, v in values.items() if name not in ("name", "effort")}
        )
        return workflow_of.inputs_of(workflow, room("accepted").check(workflow)[0])

    def control(**given):
        hint = torch.zeros(1, 3, 8, 8)
        return SimpleNamespace(cond_hint_original=hint, **{"strength": 1.0, **given})

    assert told() == told() and told() == told(name="other", effort="long")
    assert told(control()) == told(control(timestep_range=(1.0, 0.0)))  # while it is used
    different = [
        told(),
        told(control()),
        told(control(strength=0.5)),
        told(control(previous_controlnet=control())),
        told(negative=make_conditioning(5)),
        told(others=[make_conditioning(8)]),
        told(latent=empty_latent(1, 16, 24)),
        told(latent_image={"samples": empty_latent(), "batch_index": [3]}),
        told(steps=13),
    ]
    assert len(set(different)) == len(different)


def test_a_state_of_anything_is_no_harm(calibrate, folder, drawn, interrupt, tiny_flux):
    import comfy.model_management

    for content in (b"", b"[]", b'{"version": 1}', b"\xff\xfe", b'{"version": 1, "inputs": 3}'):
        folder.mkdir(exist_ok=True)
        (folder / "mine.calibration.json").write_bytes(content)
        (folder / "mine.calibration.latents").write_bytes(content)
        drawn.clear()
        interrupt(1)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            calibrate(tiny_flux)
        assert len(drawn) == 1
        (folder / "mine.calibration.json").unlink()


def test_every_picture_of_a_batch_shows_something(calibrate, folder, drawn, tiny_flux):
    policy, *_ = calibrate(tiny_flux, latent=empty_latent(2))
    assert json.loads(policy.metadata["measured_pictures"]) == [2] * 6


def test_a_mask_is_kept(calibrate, folder, tiny_flux):
    mask = torch.zeros(1, 16, 16)
    mask[:, :8] = 1
    latent = {"samples": torch.randn(1, 16, 16, 16), "noise_mask": mask}
    policy, *_ = calibrate(tiny_flux, latent_image=latent)
    assert policy.budgets


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(sampler="euler_ancestral"), "adds noise"),
        (dict(sampler="lcm"), "adds noise"),
        (dict(sampler="dpm_fast"), "makes small errors large"),
        (dict(steps=6), "6 steps"),
        (dict(sigmas=torch.linspace(0, 1, 11)), "sigmas that rise"),
        (dict(sigmas=torch.tensor([1.0, 0.8, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.0])), "do not fall"),
        (dict(sigmas=TOO_NEAR), "do not fall"),
        (dict(sigmas=torch.tensor([])), "of no step"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_drawing(
    calibrate, folder, drawn, tiny_flux, change, words
):
    with pytest.raises(ValueError, match=f"RAPID Calibrate: .*{words}.*What can be calibrated"):
        calibrate(tiny_flux, **change)
    assert not drawn and not folder.exists()


def test_a_model_with_rapid_on_it_is_refused(calibrate, accelerate, comfy_host, folder, tiny_flux):
    region = comfy_host.run_node("RAPID_RegionAdaptive", model=tiny_flux)[0]
    for model in (accelerate(tiny_flux, 2.0), region):
        with pytest.raises(ValueError, match="give the model before RAPID's nodes"):
            calibrate(model)
    calibrate(accelerate(tiny_flux, 1.0))  # off is off


@pytest.mark.parametrize("place", ["positive", "positive_2", "negative"])
def test_a_run_that_changes_on_its_way_is_refused(calibrate, folder, tiny_flux, place):
    """Plans that end gaps at its change are worse for all others, and gain nothing there."""
    given = {place: make_conditioning(3, start_percent=0.0, end_percent=0.5)}
    with pytest.raises(ValueError, match="begins or ends within the run.*without a file"):
        calibrate(tiny_flux, cfg=2.5, **given)


def test_numbers_that_are_none_are_refused(calibrate, folder, tiny_flux):
    broken = tiny_flux.clone()
    broken.set_model_unet_function_wrapper(
        lambda apply, arguments: (
            apply(arguments["input"], arguments["timestep"], **arguments["c"]) * torch.nan
        )
    )
    with pytest.raises(ValueError, match="not finite"):
        calibrate(broken)
    assert not list(folder.iterdir())


def test_a_name_is_taken_by_the_same_model_only(calibrate, folder, drawn, load_tiny, tiny_flux):
    calibrate(tiny_flux)
    with pytest.raises(ValueError, match="other weights.*Choose another name"):
        calibrate(load_tiny("flux", seed=11))
    calibrate(tiny_flux, noise_seed=9)
    (folder / "other.safetensors").write_bytes(b"a model")
    drawn.clear()
    with pytest.raises(ValueError, match="is not replaced"):
        calibrate(tiny_flux, name="other")
    assert not drawn and (folder / "other.safetensors").read_bytes() == b"a model"


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", "a/b", "a\\b", "../a", "C:a", "a?", "nul", "-a", "a.", "x" * 90, "a\n"],
)
def test_odd_names_are_refused_before_a_model_loads(comfy_host, pack, name):
    node = comfy_host.nodes.NODE_CLASS_MAPPINGS["RAPID_Calibrate"]
    said = node.validate_inputs(name=name)
    if name.strip() == "a":  # a line's end is none of the name
        assert said is True
    else:
        assert said.startswith("RAPID Calibrate: name = ")


@pytest.mark.parametrize("name", ["my model", "Flux.1 dev (2)", "模型", "a.safetensors", "a_b-c+d"])
def test_usual_names_are_accepted(comfy_host, pack, name):
    node = comfy_host.nodes.NODE_CLASS_MAPPINGS["RAPID_Calibrate"]
    assert node.validate_inputs(name=name, effort="few") is True


def test_a_full_disk_is_said_and_nothing_is_lost(
    calibrate, room, folder, drawn, monkeypatch, tiny_flux
):
    course = room("calibrate")
    write = course.write

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(course, "write", full)
    with pytest.raises(ValueError, match="No space left.*queue again"):
        calibrate(tiny_flux)
    monkeypatch.setattr(course, "write", write)
    drawn.clear()
    policy, *_ = calibrate(tiny_flux)
    assert not drawn and policy.budgets


def test_a_folder_that_cannot_be_written_is_said_before_drawing(
    calibrate, folder, drawn, tiny_flux
):
    folder.write_text("a file where the folder should be")
    with pytest.raises(ValueError, match="nothing can be written"):
        calibrate(tiny_flux)
    assert not drawn


def test_the_bar_ends_full_and_the_line_tells_the_time(room, monkeypatch, calibrate, tiny_flux):
    import comfy.utils

    seen = []
    lines = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: seen.append((value, total))
    )
    monkeypatch.setattr(room("progress"), "say", lambda node, line: lines.append(line()))
    calibrate(tiny_flux)
    assert seen[-1] == (10 * STEPS, 10 * STEPS)
    assert [value for value, _ in seen] == sorted(value for value, _ in seen)
    *before, last = lines
    assert all("of 10 pictures" in line and line.endswith("left") for line in before)
    assert before and last.endswith("pictures · done")


@pytest.mark.parametrize("node", ["EasyCache", "LazyCache"])
def test_a_cache_that_skips_by_itself_is_refused(calibrate, comfy_host, folder, tiny_flux, node):
    comfy_host.load_core_nodes("nodes_easycache.py")
    settings = dict(reuse_threshold=0.2, start_percent=0.15, end_percent=0.95, verbose=False)
    (model,) = comfy_host.run_node(node, model=tiny_flux, **settings)
    with pytest.raises(ValueError, match="EasyCache or LazyCache is on the model"):
        calibrate(model)


def test_a_workflow_that_computes_all_steps_is_refused_with_the_reason(
    calibrate, folder, drawn, tiny_flux
):
    """Where another node evaluates the conditionings, nothing is ever skipped."""

    import comfy.samplers

    odd = tiny_flux.clone()
    names = ("model", "conds", "input", "sigma", "model_options")
    odd.model_options["sampler_calc_cond_batch_function"] = lambda arguments: (
        comfy.samplers.calc_cond_batch(*(arguments[name] for name in names))
    )
    with pytest.raises(ValueError, match="computes all steps, whatever is to be skipped: .+"):
        calibrate(odd)
    assert len(drawn) == 5


def test_a_family_that_no_policy_file_is_for_is_refused(
    calibrate, room, folder, monkeypatch, tiny_flux
):
    import comfy.nested_tensor

    parts = comfy.nested_tensor.NestedTensor([empty_latent(), torch.zeros(1, 8, 30, 16)])
    with pytest.raises(ValueError, match="several parts"):
        calibrate(tiny_flux, latent=parts)
    monkeypatch.setattr(room("accepted"), "describe", lambda network: None)
    with pytest.raises(ValueError, match="Flux is of no family that RAPID has policies for"):
        calibrate(tiny_flux)


def test_samplers_of_several_evaluations(calibrate, folder, tiny_flux):
    policy, *_ = calibrate(tiny_flux, sampler="heun")
    assert policy.metadata["sampler"] == "heun"
