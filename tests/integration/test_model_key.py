"""What a model is known by in the real ComfyUI: its weights whatever is patched into them, and all
that makes its runs others."""

import time

import comfy.controlnet
import pytest
import torch

from rapid_testing.loras import LAYER, hooked, lora_file, with_lora
from rapid_testing.sampling import empty_latent, make_conditioning, sample

STEPS = 8


@pytest.fixture(scope="module")
def look(pack_module):
    """look(model, run=False, **sampling): the key of a run of a model, made where RAPID's own
    wrapper would make it; without `run` nothing is sampled."""
    from comfy.patcher_extension import WrappersMP

    host_facts = pack_module("rapid_core.comfy.facts").host_facts
    key_of = pack_module("rapid_core.comfy.model_key").key_of

    def look(model, run=False, **sampling):
        found = []

        def outer_sample(executor, noise, latent, sampler, sigmas, *rest, **named):
            facts = host_facts(executor.class_obj, noise, sampler, sigmas)
            found.append(key_of(executor.class_obj, facts))
            return executor(noise, latent, sampler, sigmas, *rest, **named) if run else latent

        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "test", outer_sample)
        sample(clone, **{"steps": STEPS, "cfg": 2.5, **sampling})
        return found[0]

    return look


@pytest.fixture(scope="module")
def flux(load_tiny):
    """A tiny FLUX that only these tests have, since they patch it."""
    return load_tiny("flux", seed=7)


@pytest.fixture(scope="module")
def key(look, flux):
    """Of that model as it is."""
    return look(flux)


def weight(model, layer=LAYER):
    return model.model.diffusion_model.get_submodule(layer).weight


# Weights.


def test_a_key_says_what_is_sampled(key):
    assert (key.family, key.architecture) == ("Flux", "flux")
    assert len(key.weights) == 16 and int(key.weights, 16)
    assert (key.patches, key.references) == ("", False)
    assert (key.sampler, key.guidance, key.size) == ("euler", "CFGGuider 2.5", "15x15")
    assert len(key.sigmas) == STEPS + 1 and key.sigmas[-1] == 0


def test_the_same_file_is_the_same_model(look, key, load_tiny):
    assert look(load_tiny("flux", seed=7)) == key


def test_other_weights_of_the_same_shapes_are_another_model(look, key, load_tiny):
    other = look(load_tiny("flux", seed=8))
    assert other.weights != key.weights and key.difference(other) is None


def test_the_width_that_weights_are_kept_at_does_not_count(look, load_tiny):
    """A file in bfloat16 is kept as float32 by a device that knows no other."""
    model = load_tiny("flux", seed=7)
    model.model.diffusion_model.to(torch.bfloat16)
    narrow = look(model)
    model.model.diffusion_model.to(torch.float32)
    assert look(model) == narrow


def test_the_width_that_a_model_computes_in_does_not_count(look, key, flux):
    clone = flux.clone()
    clone.set_model_compute_dtype(torch.bfloat16)
    assert look(clone) == key


def test_a_small_change_of_all_weights_is_another_model(look, key, load_tiny):
    model = load_tiny("flux", seed=7)
    with torch.no_grad():
        for parameter in model.model.diffusion_model.parameters():
            parameter.mul_(1.002)
    assert look(model).weights != key.weights


def test_weights_loaded_anew_in_place_are_another_model(look, load_tiny):
    model, other = load_tiny("flux", seed=9), load_tiny("flux", seed=8)
    before = look(model)
    model.model.diffusion_model.load_state_dict(other.model.diffusion_model.state_dict())
    assert look(model) != before and look(model) == look(other)


@pytest.mark.parametrize("layers", [(LAYER,), None], ids=["one layer", "all layers"])
def test_patches_leave_the_fingerprint_of_the_weights(look, key, load_tiny, layers):
    """Also while they stand in the weights' place, in this model and for its clones."""
    model = load_tiny("flux", seed=7)
    patched = model
    for layer in layers or layers_of(model):
        patched = with_lora(patched, layer=layer)
    before = weight(model).clone()
    first = look(patched, run=True)
    assert not torch.equal(weight(model), before), "the patch was not applied in place"
    for again in (look(patched), look(model)):
        assert again.weights == first.weights == key.weights
    assert look(patched).patches == first.patches != "" == look(model).patches
    assert look(model, run=True) == look(model) == key
    assert torch.equal(weight(model), before)


def layers_of(model):
    """Names of all layers that `lora_file` fits."""
    parameters = model.model.diffusion_model.named_parameters()
    return [n.removesuffix(".weight") for n, p in parameters if p.shape == (128, 128)]


def test_hooks_leave_the_fingerprint_of_the_weights(look, key, load_tiny):
    model = load_tiny("flux", seed=7)
    first = look(model, run=True, positive=hooked())
    assert first.weights == key.weights and first.patches
    assert look(model) == key


def test_a_model_kept_partly_off_the_device_is_the_same(look, key, load_tiny):
    patched = with_lora(load_tiny("flux", seed=7))
    patched.patch_model(lowvram_model_memory=1000, device_to=patched.load_device)
    assert look(patched).weights == key.weights
    patched.unpatch_model(patched.offload_device)


def test_packed_weights_are_looked_at_as_they_are(look, load_tiny):
    """As GGUF keeps them: bytes that say they have another shape."""

    class Packed(torch.Tensor):
        @property
        def shape(self):
            return torch.Size((128, 128))

        def detach(self):
            return self

        def to(self, *arguments, **named):
            raise AssertionError("unpacked")

    def packed(seed):
        model = load_tiny("flux", seed=7)
        for name in layers_of(model):
            generator = torch.Generator().manual_seed(seed)
            data = torch.randint(256, (128, 72), generator=generator, dtype=torch.uint8)
            layer = model.model.diffusion_model.get_submodule(name)
            layer.weight = torch.nn.Parameter(data.as_subclass(Packed), requires_grad=False)
        return look(model)

    assert packed(0) == packed(0)
    assert packed(0).weights != packed(1).weights


def test_quantized_weights_are_looked_at_as_they_are(look, load_tiny):
    from comfy.quant_ops import QuantizedTensor

    def quantized(seed):
        model = load_tiny("flux", seed=seed)
        for name in layers_of(model):
            layer = model.model.diffusion_model.get_submodule(name)
            data = QuantizedTensor.from_float(layer.weight.data, "TensorCoreFP8E4M3Layout")
            layer.weight = torch.nn.Parameter(data, requires_grad=False)
        return look(model)

    assert quantized(7) == quantized(7)
    assert quantized(7).weights != quantized(8).weights


@pytest.mark.parametrize("where", ["all", "one"])
def test_a_model_that_cannot_be_looked_at_is_not_learned(
    look, load_tiny, monkeypatch, reason, where
):
    model = load_tiny("flux", seed=7)

    class Unseen(torch.Tensor):
        @property
        def shape(self):
            raise RuntimeError("not here")

    if where == "one":
        for name in layers_of(model):
            layer = model.model.diffusion_model.get_submodule(name)
            layer.weight = torch.nn.Parameter(layer.weight.data.as_subclass(Unseen))
    else:

        def named_parameters(**named):
            raise RuntimeError("not here")

        monkeypatch.setattr(model.model.diffusion_model, "named_parameters", named_parameters)
    assert look(model) == reason("NOT_LEARNED", why="RuntimeError: not here")


def test_a_model_without_weights_is_not_learned(look, load_tiny, monkeypatch, reason):
    model = load_tiny("flux", seed=7)
    nothing = lambda **named: iter(())  # noqa: E731
    monkeypatch.setattr(model.model.diffusion_model, "named_parameters", nothing)
    assert look(model) == reason("NOT_LEARNED", why="ValueError: a model without weights")


# Patches.


def test_a_lora_is_told_by_its_weights_and_strength(look, key, flux):
    keys = [
        key,
        look(with_lora(flux)),
        look(with_lora(flux, seed=1)),
        look(with_lora(flux, strength=0.8)),
        look(with_lora(flux, layer="double_blocks.1.img_attn.proj")),
        look(with_lora(with_lora(flux), seed=1)),
        look(with_lora(with_lora(flux, seed=1))),
    ]
    assert len({k.patches for k in keys}) == len(keys)
    assert {k.weights for k in keys} == {key.weights}
    assert all(key.difference(k) == ("patches",) for k in keys[1:])


def test_the_same_lora_loaded_again_is_the_same(look, flux):
    assert look(with_lora(flux)) == look(with_lora(flux))


def test_a_merge_is_told_by_the_other_model(look, key, flux, load_tiny):
    def merged(seed, share=0.5):
        clone = flux.clone()
        other = load_tiny("flux", seed=seed).get_key_patches("diffusion_model.")
        clone.add_patches(other, 1.0 - share, share)
        return look(clone)

    assert merged(8) == merged(8) and merged(8).weights == key.weights
    assert len({k.patches for k in (key, merged(8), merged(9), merged(8, 0.4))}) == 4


def test_a_lora_beside_the_weights_is_told_by_its_weights_and_strength(look, key, flux):
    import comfy.sd

    def bypassed(seed=0, strength=1.0):
        lora = lora_file(seed)
        return look(comfy.sd.load_bypass_lora_for_models(flux, None, lora, strength, 0.0)[0])

    assert bypassed() == bypassed()
    keys = (key, bypassed(), bypassed(1), bypassed(strength=0.5))
    assert len({k.patches for k in keys}) == 4


def test_lora_hooks_are_told_by_what_is_in_them(look, key, flux):
    again = look(flux, positive=hooked())
    keys = [
        key,
        look(flux, positive=hooked()),
        look(flux, positive=hooked(1)),
        look(flux, positive=hooked(strength=0.5)),
        look(flux, positive=hooked(keyframes=((1.0, 0.0), (0.5, 0.5)))),
        look(flux, positive=hooked(keyframes=((1.0, 0.0), (0.5, 0.6)))),
        look(flux, negative=hooked()),
        look(flux, positive=hooked(), negative=hooked()),
    ]
    assert again == keys[1]
    assert len({k.patches for k in keys}) == len(keys)


def test_a_hook_of_a_conditioning_that_is_not_evaluated_does_not_count(look, flux):
    assert look(flux, cfg=1.0, negative=hooked()) == look(flux, cfg=1.0)


def test_hooks_are_the_same_after_a_run_through_their_keyframes(look, load_tiny):
    model = load_tiny("flux", seed=7)
    positive = hooked(keyframes=((1.0, 0.0), (0.5, 0.5)))
    assert look(model, run=True, positive=positive) == look(model, positive=positive)


def test_a_module_that_another_node_replaces_is_a_patch(look, key, load_tiny):
    """Also while it stands in the model's own place."""
    model = load_tiny("flux", seed=7)
    replaced = model.clone()
    place = "diffusion_model.double_blocks.0.img_attn.proj"
    replaced.add_object_patch(place, torch.nn.Linear(128, 128))
    first = look(replaced, run=True)
    assert first.patches and look(replaced) == first
    assert first.weights == look(model).weights == key.weights


def test_a_model_first_seen_with_a_replaced_module_is_the_same(look, key, load_tiny):
    model = load_tiny("flux", seed=7)
    replaced = model.clone()
    replaced.add_object_patch(
        "diffusion_model.double_blocks.0.img_attn.proj", torch.nn.Linear(128, 128)
    )
    sample(replaced, steps=1)
    assert look(model) == key


def test_a_compiled_block_is_no_patch(look, key, flux):
    clone = flux.clone()
    place = "diffusion_model.double_blocks.0"
    clone.add_object_patch(place, torch.compile(clone.get_model_object(place)))
    assert look(clone) == key


def test_other_sigmas_of_a_model_show_in_its_sigmas_only(look, key, flux):
    from comfy_extras.nodes_model_advanced import ModelSamplingFlux

    (shifted,) = ModelSamplingFlux().patch(flux, 2.0, 1.5, 256, 256)
    assert key.difference(look(shifted)) == ("sigmas",)


@pytest.mark.parametrize("kind", ["flux", "sd3", "z_image"])
def test_nodes_of_this_pack_do_not_count(look, family, accelerate, region, kind):
    model, latent = family(kind)
    empty = dict(latent=torch.zeros(1, *latent))
    plain = look(model, **empty)
    for patched in (accelerate(model), region(model), region(accelerate(model))):
        assert look(patched, **empty) == plain
    assert plain.patches == "" and plain.weights


# How it is sampled.


@pytest.mark.parametrize(
    "sampling, differs",
    [
        (dict(cfg=4.0), "guidance"),
        (dict(positive=make_conditioning(0, guidance=3.5)), "guidance"),
        (dict(scheduler="beta"), "sigmas"),
        (dict(steps=9), "sigmas"),
        (dict(sampler="dpmpp_2m"), "sampler"),
        (dict(latent=empty_latent(height=24, width=16)), "size"),
        (dict(latent=empty_latent(height=16, width=12)), "size"),
        (
            dict(positive=make_conditioning(0, reference_latents=[torch.zeros(1, 16, 16, 16)])),
            "references",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_run_of_a_model_is_known_by_what_differs(look, key, flux, sampling, differs):
    assert key.difference(look(flux, **sampling)) == (differs,)


def ranged(start, end):
    """A positive prompt from one share of the schedule to another."""
    return make_conditioning(0, start_percent=start, end_percent=end)


def controlled(*ranges, end=1.0):
    """A positive prompt with ControlNets in a row, each with its range, that add nothing."""
    control = None
    for bounds in ranges:
        before, control = control, comfy.controlnet.ControlBase()
        control.timestep_percent_range = bounds
        control.previous_controlnet = before
        control.get_control = lambda *_: None
    return make_conditioning(0, control=control, start_percent=0.0, end_percent=end)


@pytest.mark.parametrize(
    "sampling, turns",
    [
        (dict(positive=ranged(0.0, 0.4) + ranged(0.4, 1.0)), 1),
        (dict(positive=make_conditioning(0) + ranged(0.25, 0.75)), 2),
        (dict(negative=ranged(0.0, 0.5)), 1),
        (dict(negative=ranged(0.0, 0.5), cfg=1.0), 0),  # not evaluated
        (dict(positive=ranged(0.0, 1.0)), 0),
        (dict(positive=ranged(0.0, 0.2), denoise=0.5), 0),  # before the run
        (dict(positive=ranged(0.0, 0.999)), 0),  # after its last evaluation
        (dict(positive=make_conditioning(0) + ranged(0.55, 0.57)), 0),  # between two steps
        (dict(positive=make_conditioning(0) + ranged(0.6, 0.3)), 0),  # never
        (dict(positive=controlled((0.0, 0.6))), 1),
        (dict(positive=controlled((0.0, 0.3), (0.5, 1.0))), 2),
        (dict(positive=controlled((0.0, 1.0))), 0),
        (dict(positive=controlled((0.0, 0.7), end=0.3) + ranged(0.3, 1.0)), 1),  # with its prompt
        (dict(positive=hooked(keyframes=((1.0, 0.0), (0.5, 0.5)))), 1),
        (
            dict(positive=hooked(keyframes=((1.0, 0.3), (0.5, 0.6)))),
            1,
        ),  # the first is from the start
        (dict(positive=hooked()), 0),
    ],
)
def test_what_begins_and_ends_in_a_run_is_known_before_it(pack_module, flux, sampling, turns):
    """At the steps at which the host evaluates something else."""
    from comfy.patcher_extension import WrappersMP

    host_facts = pack_module("rapid_core.comfy.facts").host_facts
    conditions = pack_module("rapid_core.comfy.conditions")
    evaluated = pack_module("rapid_core.comfy.facts").evaluated
    known, keys = [], []

    def outer_sample(executor, noise, latent, sampler, sigmas, *rest, **named):
        known.append(host_facts(executor.class_obj, noise, sampler, sigmas).turns)
        return executor(noise, latent, sampler, sigmas, *rest, **named)

    def predict_noise(executor, x, timestep, *rest, **named):
        guider, sigma = executor.class_obj, timestep.flatten()[0].item()
        lists = [guider.conds[name] for name in evaluated(guider, "euler")]
        keys.append([conditions.cond_key(i, some, sigma, x) for i, some in enumerate(lists)])
        return executor(x, timestep, *rest, **named)

    clone = flux.clone()
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "test", outer_sample)
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "test", predict_noise)
    sample(clone, **{"steps": STEPS, "cfg": 2.5, **sampling})
    assert known == [tuple(i for i in range(1, len(keys)) if keys[i] != keys[i - 1])]
    assert len(known[0]) == turns


def test_guidance_of_other_nodes_is_told_by_the_node_and_its_settings(
    look, key, flux, comfy_host, accelerate
):
    for name in ("nodes_model_advanced.py", "nodes_slg.py", "nodes_apg.py"):
        comfy_host.load_core_nodes(name)

    def with_node(node, **given):
        return comfy_host.run_node(node, model=flux, **given)[0]

    def skipping(scale=3.0, end=0.15):
        given = dict(start_percent=0.01, end_percent=end, double_layers="0", single_layers="")
        return with_node("SkipLayerGuidanceDiT", scale=scale, **given)

    rescaled = look(with_node("RescaleCFG", multiplier=0.7))
    assert rescaled.guidance.startswith("CFGGuider 2.5 RescaleCFG#")
    assert rescaled.turns == "RescaleCFG" and key.difference(rescaled) is None
    first = look(skipping())
    assert first == look(skipping()) == look(accelerate(skipping()))
    assert first.difference(look(skipping(scale=2.0))) == ("guidance",)
    assert first.difference(look(skipping(end=0.6))) == ("guidance",)
    averaging = with_node("APG", eta=1.0, norm_threshold=5.0, momentum=0.5)
    assert look(averaging, run=True) == look(averaging)  # its running mean is another now


def test_tensors_that_a_guidance_was_made_with_do_not_count(look, flux):
    """They may be of the picture: another one would be a setting that nobody comes back to."""

    def pulled(target, strength):
        model = flux.clone()
        model.set_model_sampler_post_cfg_function(
            lambda given: torch.lerp(given["denoised"], target, strength)
        )
        return look(model)

    one, other = pulled(torch.zeros(1), 0.1), pulled(torch.ones(1), 0.1)
    assert one == other != pulled(torch.ones(1), 0.2)


def test_a_picture_of_four_times_the_area_is_no_run_nearby(look, key, flux):
    assert key.difference(look(flux, latent=empty_latent(height=32, width=32))) is None


@pytest.mark.parametrize(
    "sampling",
    [
        dict(latent=empty_latent(4)),
        dict(latent=empty_latent(height=15, width=16)),
        dict(seed=5),
        dict(positive=make_conditioning(5)),
    ],
    ids=["batch", "size", "seed", "prompt"],
)
def test_what_is_drawn_does_not_count(look, key, flux, sampling):
    assert key.difference(look(flux, **sampling)) == ()


def test_all_scales_of_a_guider_count(pack_module):
    from comfy_extras.nodes_custom_sampler import Guider_Basic, Guider_DualCFG

    guidance = pack_module("rapid_core.comfy.model_key")._guidance
    guiders = [kind.__new__(kind) for kind in (Guider_Basic, Guider_DualCFG)]
    for guider in guiders:
        guider.cfg = 1.0
        guider.model_options = {}
    guiders[1].set_cfg(2.5, 4)
    told = {"positive": [{"guidance": 3.5}, {}]}
    assert guidance(guiders[0], told) == "Guider_Basic 1 guidance=3.5"
    assert guidance(guiders[1], {}) == "Guider_DualCFG 1 2.5 4"


def test_parts_of_a_packed_latent_have_a_class_each(pack_module):
    facts = pack_module("rapid_core.engine.plan").HostFacts(
        shape=(1, 1, 1100), sigmas=(1.0, 0.0), parts=(slice(0, 1000), slice(1000, 1100))
    )
    assert list(pack_module("rapid_core.comfy.model_key")._sides(facts)) == [1000, 100]


# What it costs.


def test_a_fingerprint_costs_next_to_nothing(pack_module, load_tiny):
    module = pack_module("rapid_core.comfy.model_key")

    def seconds(model):
        start = time.perf_counter()
        module._weights(model)
        return time.perf_counter() - start

    def evaluation(model):
        start = time.perf_counter()
        sample(model, steps=4)
        return (time.perf_counter() - start) / 4

    # The least of several, and beside an evaluation of this tiny model: the machine may be slow or busy.
    models = [load_tiny("flux", seed=7) for _ in range(3)]
    usual = min(evaluation(models[0]) for _ in range(5))
    assert min(map(seconds, models)) < 3 * usual
    assert min(seconds(models[0]) for _ in range(20)) < usual / 8


def test_a_lora_is_read_once(pack_module, look, flux, monkeypatch):
    """It has a thousand tensors."""
    module = pack_module("rapid_core.comfy.model_key")
    patched, positive = with_lora(flux), hooked()
    first = look(patched, positive=positive)
    read = []
    values = module._values
    monkeypatch.setattr(module, "_values", lambda tensor: read.append(tensor) or values(tensor))
    assert look(patched, positive=positive) == first
    assert len(read) == module.TENSORS  # of the model itself


def test_nothing_is_kept_of_a_model_that_is_gone(pack_module, look, load_tiny):
    import gc

    layouts = pack_module("rapid_core.comfy.model_key")._LAYOUTS
    gc.collect()
    before = len(layouts)
    model = load_tiny("flux", seed=7)
    look(model)
    assert len(layouts) == before + 1
    del model
    gc.collect()
    assert len(layouts) == before
