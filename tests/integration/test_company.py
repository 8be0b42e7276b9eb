"""Other packs' nodes, and the host's own, on the same model: whatever they do to it, a picture comes out,
it is the right one, and the report says what was not done and why.

Nodes of the host are the real ones. Packs that no package index has are stand-ins that do to the model
what theirs do. More of them stand elsewhere:

    Detail Daemon's sigmas           test_safety.py, test_defects.py
    LanPaint's guider, of two values test_defects.py
    tiled diffusion                  test_defects.py
    RES4LYF's resample               test_safety.py
    EasyCache and LazyCache          test_compare.py, test_region_conditions.py, test_calibrate.py
    torch.compile                    test_region_runs.py (before and after), test_model_key.py
    PerpNeg                          test_region_conditions.py
"""

import math
from types import SimpleNamespace

import pytest
import torch

from rapid_testing.frozen import EVERY
from rapid_testing.loras import hooked, with_lora
from rapid_testing.records import codes
from rapid_testing.safety import even_so
from rapid_testing.sampling import custom, empty_latent, make_conditioning, sample, sigmas_of

STEPS = 12
WHOLE = ("accelerate 2", "skip")  # of EVERY: nodes that skip whole evaluations
INSIDE = tuple(name for name in EVERY if name not in WHOLE)


@pytest.fixture
def core(comfy_host):
    """core("nodes_nag.py", "NAGuidance", ...): outputs of a node of the host, or the test is skipped
    where this host has none such. Inputs that are not given have their defaults."""

    def core(file, node_id, **inputs):
        late = f"{node_id} came with a later ComfyUI than {comfy_host.version}"
        if not (comfy_host.tree / "comfy_extras" / file).is_file():
            pytest.skip(late)
        comfy_host.load_core_nodes(file)
        node = comfy_host.nodes.NODE_CLASS_MAPPINGS.get(node_id)
        if node is None:
            pytest.skip(late)
        known = node.GET_SCHEMA().inputs if hasattr(node, "GET_SCHEMA") else ()
        defaults = {
            slot.id: slot.default for slot in known if getattr(slot, "default", None) is not None
        }
        return comfy_host.run_node(node_id, **{**defaults, **inputs})

    return core


def acts(record, name):
    """Whether a node of EVERY did what it is for in any evaluation of a run."""
    totals = record.totals
    return {
        "accelerate 2": totals["skipped"],
        "skip": totals["skipped"],
        "reuse": totals["reused"],
        "per token": totals["partial"] + totals["skipped"],
        "region": totals["partial"],
        "sparse": sum(e.sparse for e in record.evaluations),
    }[name] > 0


def constant(model, slope=0.0):
    """A model whose derivative is one and the same, or moves on a line over sigma: predictions are
    exact."""
    base, rise = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(5))

    def on_a_line(apply_model, given):
        x = given["input"]
        sigma = given["timestep"].view(-1, 1, 1, 1)
        return x - sigma * (base + slope * sigma * rise).to(x)

    model.set_model_unet_function_wrapper(on_a_line)
    return model


# RES4LYF: latents in double precision, a second look between two sigmas, and implicit steps, which look
# at one sigma again and again.


def two_stage(implicit=0, tell=None):
    """A SAMPLER function as RES4LYF's exponential midpoint calls the model; implicit: how often a step
    is gone again with what came of it. tell: collects the sigmas that are told."""

    def sample_rk_beta(
        model, x, sigmas, extra_args=None, callback=None, disable=None, eta=0.0, rk_type="res_2s"
    ):
        x = x.double()
        sigmas = sigmas.double()

        def derivative(at, sigma):
            if tell is not None:
                tell.append(float(sigma))
            return (at - model(at, sigma * at.new_ones(len(at)), **extra_args)) / sigma

        for i in range(len(sigmas) - 1):
            now, end = sigmas[i], sigmas[i + 1]
            middle = (now * end).sqrt() if end > 0 else now / 2
            slope = derivative(x, now)
            if callback is not None:
                callback({"x": x, "i": i, "sigma": now, "denoised": x - now * slope})
            half = derivative(x + slope * (middle - now), middle)
            for _ in range(implicit):
                half = derivative(x + half * (middle - now), middle)
            x = x + half * (end - now)
        return x

    return sample_rk_beta


@pytest.mark.parametrize("implicit", [0, 2])
@pytest.mark.parametrize("name", EVERY)
def test_two_stages_a_step_in_double_precision(tiny_sd3, patched, record_of, name, implicit):
    told = []
    model = patched(tiny_sd3, name)
    out = custom(model, two_stage(implicit, told), sigmas_of(model, STEPS), cfg=2.0)
    record = record_of(model)
    assert out.isfinite().all() and record.status == "finished"
    assert len(record.evaluations) == len(told) == STEPS * (2 + implicit)
    plain = custom(tiny_sd3, two_stage(implicit), sigmas_of(model, STEPS), cfg=2.0)
    assert out.dtype == plain.dtype
    assert acts(record, name)


@pytest.mark.parametrize("implicit", [0, 2])
@pytest.mark.parametrize("name", WHOLE)
def test_what_is_predicted_between_two_stages_is_exact_where_it_can_be(
    tiny_sd3, patched, record_of, name, implicit
):
    plain = constant(tiny_sd3)
    model = even_so(patched(plain, name))
    sigmas = sigmas_of(model, STEPS)
    out, full = (custom(m, two_stage(implicit), sigmas) for m in (model, plain))
    assert record_of(model).totals["skipped"] > STEPS / 3
    assert (out - full).abs().max() < 1e-4 * full.abs().max()


# Detail Daemon, with the nodes that act inside of the model.


@pytest.mark.parametrize("name", INSIDE)
def test_sigmas_that_detail_daemon_lowers(tiny_flux, patched, record_of, name):
    import comfy.samplers

    def detail_daemon(model, x, sigmas, *, dds_wrapped_sampler, **named):
        def told(x, sigma, **given):
            middle = 0.25 < float(sigma.max()) < 0.9
            return model(x, sigma * 0.95 if middle else sigma, **given)

        for place in ("inner_model", "sigmas"):
            setattr(told, place, getattr(model, place))
        inner = dds_wrapped_sampler
        return inner.sampler_function(told, x, sigmas, **named, **inner.extra_options)

    inner = comfy.samplers.sampler_object("euler")
    sampler = comfy.samplers.KSAMPLER(detail_daemon, {"dds_wrapped_sampler": inner})
    model = patched(tiny_flux, name)
    out = custom(model, sampler, sigmas_of(model, STEPS))
    record = record_of(model)
    assert out.isfinite().all() and len(record.evaluations) == STEPS
    assert acts(record, name) or "other_sigmas" in codes(record)


# FlowEdit: two pictures at once, each with a prompt of its own, at sigmas that both are told, and with
# noise that is new in every step.


def flow_edit_guider(model):
    import comfy.samplers

    class FlowEdit(comfy.samplers.CFGGuider):
        def set_conds(self, source, target):
            self.inner_set_conds({"source_positive": source, "target_positive": target})

        def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
            which = model_options["transformer_options"]["latent_type"]
            positive = self.conds[f"{which}_positive"]
            given = (self.inner_model, x, timestep, None, positive, 1.0)
            return comfy.samplers.sampling_function(*given, model_options=model_options, seed=seed)

    return FlowEdit(model)


def flow_edit(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """The target moves by how much the two derivatives differ."""
    generator = torch.Generator().manual_seed(7)
    source = torch.zeros_like(x)
    target = source.clone()
    options = extra_args["model_options"]
    kinds = {
        kind: {
            **extra_args,
            "model_options": {
                **options,
                "transformer_options": {**options["transformer_options"], "latent_type": kind},
            },
        }
        for kind in ("source", "target")
    }
    for i in range(len(sigmas) - 1):
        now = sigmas[i]
        noise = torch.randn(x.shape, generator=generator)
        noisy = (1 - now) * source + now * noise
        latents = {"source": noisy, "target": target + noisy - source}
        slopes = {
            kind: (at - model(at, now * x.new_ones(len(x)), **kinds[kind])) / now
            for kind, at in latents.items()
        }
        target = target + (sigmas[i + 1] - now) * (slopes["target"] - slopes["source"])
        if callback is not None:
            callback({"x": target, "i": i, "sigma": now, "denoised": target})
    return target


@pytest.mark.parametrize("name", EVERY)
def test_two_pictures_at_once_as_flow_edit_has_them(
    tiny_flux, patched, record_of, as_shipped, name
):
    """Nothing can be predicted of noise that is new in every step, and nothing of one picture of the
    other's."""
    model = patched(tiny_flux, name)
    sigmas = sigmas_of(model, STEPS)
    out, full = (custom(m, flow_edit, sigmas, guider=flow_edit_guider) for m in (model, tiny_flux))
    record = record_of(model)
    assert record.status == "finished" and len(record.evaluations) == 2 * STEPS
    assert out.isfinite().all()
    if name in WHOLE:
        assert torch.equal(out, full) and codes(record)


@pytest.fixture
def as_shipped(pack_module, monkeypatch):
    """Bounds in the place of those that conftest sets aside."""
    actor = pack_module("rapid_core.techniques.step_skip.schedule_actor")
    from rapid_core.techniques.step_skip import schedule_actor as shipped

    monkeypatch.setattr(actor, "SAFE_ERROR", shipped.SAFE_ERROR)
    monkeypatch.setattr(actor, "SAFE_GAP", shipped.SAFE_GAP)


# LanPaint: several looks a step, at latents that it moves by noise of its own.


@pytest.mark.parametrize("name", EVERY)
def test_several_looks_a_step_at_latents_that_are_moved_by_noise(
    tiny_flux, patched, record_of, name
):
    """As LanPaint's do; its guider gives two values, too, see test_defects.py."""

    def lan_paint(model, x, sigmas, extra_args=None, callback=None, disable=None):
        generator = torch.Generator().manual_seed(3)
        for i in range(len(sigmas) - 1):
            now = sigmas[i]
            for _ in range(3):
                denoised = model(x, now * x.new_ones(len(x)), **extra_args)
                moved = torch.randn(x.shape, generator=generator)
                x = x + 0.05 * now * ((denoised - x) + moved)
            denoised = model(x, now * x.new_ones(len(x)), **extra_args)
            if callback is not None:
                callback({"x": x, "i": i, "sigma": now, "denoised": denoised})
            x = x + (x - denoised) / now * (sigmas[i + 1] - now)
        return x

    model = patched(tiny_flux, name)
    sigmas = sigmas_of(model, STEPS)
    out, full = (custom(m, lan_paint, sigmas, cfg=2.0) for m in (model, tiny_flux))
    record = record_of(model)
    assert record.status == "finished" and len(record.evaluations) == 4 * STEPS
    assert out.isfinite().all()
    assert float((out - full).square().mean()) < float(full.square().mean())


# Adaptive guidance: the negative prompt is let go of in the middle of a run, and taken up again.


def adaptive_guider(off):
    """A guider that has no negative while off(sigma); as the pack's, it asks for [negative, positive]
    where it has both, and for [positive, nothing] where not."""

    def make(model):
        import comfy.samplers

        class Adaptive(comfy.samplers.CFGGuider):
            def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
                negative, positive = self.conds["negative"], self.conds["positive"]
                given = (self.inner_model, x, timestep)
                if off(float(timestep[0])):
                    return comfy.samplers.sampling_function(
                        *given, negative, positive, 1.0, model_options=model_options, seed=seed
                    )
                out = comfy.samplers.calc_cond_batch(
                    given[0], [negative, positive], *given[1:], model_options
                )
                return comfy.samplers.cfg_function(
                    given[0], out[1], out[0], self.cfg, *given[1:], model_options=model_options
                )

        return Adaptive(model)

    return make


@pytest.mark.parametrize("comes_back", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_a_negative_that_comes_and_goes(tiny_sd3, patched, record_of, name, comes_back):
    def off(sigma):
        return sigma < 0.7 and not (comes_back and sigma < 0.4)

    import comfy.samplers

    model = patched(tiny_sd3, name)
    sigmas = sigmas_of(model, STEPS)
    euler = comfy.samplers.sampler_object("euler")
    out = custom(model, euler, sigmas, cfg=3.0, guider=adaptive_guider(off))
    record = record_of(model)
    assert record.status == "finished" and out.isfinite().all()
    marks = record.strip(0)
    changes = [i for i in range(1, STEPS) if off(float(sigmas[i])) != off(float(sigmas[i - 1]))]
    assert len(changes) == 1 + comes_back
    assert acts(record, name)
    if name in WHOLE:  # nothing is predicted across a change
        assert all(marks[i] == "#" for i in changes), marks
    if name == "skip":  # which would have skipped there
        assert "cond_without_history" in codes(record)


# Prompts that begin and end, and guidance that ends: what a gap was before it says nothing of what is
# after it.


def saying(number, **settings):
    """A conditioning whose text is one number."""
    [[text, more]] = make_conditioning(0)
    return [[torch.full_like(text, number), {**more, **settings}]]


def constant_by_prompt(model):
    """A model whose derivative is one and the same for each prompt of `saying`: predictions are exact."""
    derivatives = torch.randn(3, 16, 16, 16, generator=torch.Generator().manual_seed(5))

    def by_prompt(apply_model, given):
        x = given["input"]
        which = given["c"]["c_crossattn"][:, 0, 0].long()
        return x - given["timestep"].view(-1, 1, 1, 1) * derivatives[which].to(x)

    model.set_model_unet_function_wrapper(by_prompt)
    return model


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("at", [0.3, 0.5, 0.6])
def test_a_gap_is_not_corrected_across_the_end_of_a_prompt(tiny_sd3, patched, record_of, cfg, at):
    plain = constant_by_prompt(tiny_sd3)
    model = patched(plain, "accelerate 2")
    prompts = saying(0, end_percent=at) + saying(1, start_percent=at)
    run = dict(steps=20, cfg=cfg, positive=prompts, negative=saying(2))
    out, full = (sample(m, **run) for m in (model, plain))
    assert record_of(model).totals["skipped"] == 10
    assert torch.allclose(out, full, atol=1e-5)


@pytest.mark.parametrize("at", [0.1, 0.3, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun"])
@pytest.mark.parametrize("closeness", [None, 40.0])
def test_where_a_prompt_begins_is_known_before_the_run(
    tiny_sd3, patched, record_of, at, sampler, closeness
):
    """So nothing has to be computed that was to be skipped, and nothing is skipped across."""
    more = {} if closeness is None else dict(mode="quality", decibels=closeness)
    model = patched(tiny_sd3, "accelerate 2", **more)
    positive = saying(0, end_percent=at) + saying(1, start_percent=at) + saying(2)
    sample(model, steps=20, cfg=3.0, positive=positive, negative=saying(2), sampler=sampler)
    record = record_of(model)
    assert record.totals["skipped"]
    codes = {reason.code for e in record.evaluations for reason in e.reasons}
    assert "cond_without_history" not in codes
    # What was off before it is off by another measure after, by up to 14 dB (docs/lab.md).
    unknown = "closeness_unknown" in {note.code for note in record.notes}
    assert not unknown or record.totals["closeness"] is None
    assert unknown or at < 0.3  # where nothing was skipped before


@pytest.mark.parametrize("until", [0.9, 0.7, 0.5])
def test_a_gap_is_not_corrected_across_the_end_of_guidance(tiny_sd3, patched, record_of, until):
    """As of nodes with a schedule of cfg, under which the positive prompt goes on."""
    import comfy.samplers

    class Scheduled(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
            self.cfg = 3.0 if timestep[0] > until else 1.0
            return super().predict_noise(x, timestep, model_options, seed)

        def set_conds(self, *_):
            super().set_conds(saying(0), saying(2))

    plain = constant_by_prompt(tiny_sd3)
    model = patched(plain, "accelerate 2")
    euler = comfy.samplers.sampler_object("euler")
    run = dict(sigmas=sigmas_of(model, 20), cfg=3.0, guider=Scheduled)
    out, full = (custom(m, euler, **run) for m in (model, plain))
    assert record_of(model).totals["skipped"] == 10
    assert torch.allclose(out, full, atol=1e-5)


@pytest.mark.parametrize("until", [0.9, 0.7, 0.5])
def test_a_gap_is_not_corrected_across_the_end_of_a_second_look_at_a_prompt(
    tiny_sd3, patched, record_of, until
):
    """As skip-layer guidance has it, with a part of the run to act in."""
    import comfy.samplers

    def look_again(given):
        out, x, sigma = given["denoised"], given["input"], given["sigma"]
        if sigma[0] <= until:
            return out
        options = given["model_options"]
        (again,) = comfy.samplers.calc_cond_batch(
            given["model"], [given["cond"]], x, sigma, options
        )
        return out + 0.5 * (again - given["uncond_denoised"])

    plain = constant_by_prompt(tiny_sd3)
    plain.set_model_sampler_post_cfg_function(look_again)
    model = patched(plain, "accelerate 2")
    run = dict(steps=20, cfg=3.0, positive=saying(0), negative=saying(2))
    out, full = (sample(m, **run) for m in (model, plain))
    assert record_of(model).totals["skipped"] == 10
    assert torch.allclose(out, full, atol=1e-5)


# NAG, and skip-layer guidance.


@pytest.mark.parametrize("name", EVERY)
def test_normalized_attention_guidance(tiny_flux, patched, record_of, core, name):
    """It works on both prompts of one call, inside the blocks."""
    (guided,) = core("nodes_nag.py", "NAGuidance", model=tiny_flux)
    full = sample(guided, steps=STEPS)
    assert not torch.equal(full, sample(tiny_flux, steps=STEPS))  # it does act
    model = patched(guided, name)
    out = sample(model, steps=STEPS)
    record = record_of(model)
    if name in ("reuse", "region"):
        assert torch.equal(out, full) and "blocks_patched" in codes(record)
    else:
        assert acts(record, name) and out.isfinite().all()


@pytest.mark.parametrize("simple", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_skip_layer_guidance(tiny_sd3, patched, record_of, core, name, simple):
    """One looks once more with a layer left out, the other at the negative without it."""
    about = dict(double_layers="1", single_layers="", start_percent=0.0, end_percent=0.5)
    node = "SkipLayerGuidanceDiTSimple" if simple else "SkipLayerGuidanceDiT"
    (guided,) = core("nodes_slg.py", node, model=tiny_sd3, **about)
    settings = dict(steps=STEPS, cfg=3.0)
    full = sample(guided, **settings)
    assert not torch.equal(full, sample(tiny_sd3, **settings))
    model = patched(guided, name)
    out = sample(model, **settings)
    record = record_of(model)
    assert out.isfinite().all() and record.status == "finished"
    if simple:
        assert torch.equal(out, full) and "foreign_cond_batch" in codes(record)
    else:
        assert acts(record, name)


# GGUF: weights are bytes that say they have another shape, and layers make numbers of them.


class Packed(torch.Tensor):
    """A matrix in 8 bits, which says that it has the shape of what it stands for."""

    @property
    def shape(self):
        return torch.Size(self.stands_for)

    def detach(self):
        return self

    def clone(self):
        return self


def pack_weights(model):
    """Make every matrix of a model's blocks bytes, and let its layer unpack them when it runs."""

    class Unpacking(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.scale = float(layer.weight.abs().max()) / 127
            data = (layer.weight.data / self.scale).round().to(torch.int8).view(torch.uint8)
            data = torch.cat((data, data[:, :2]), 1).as_subclass(Packed)  # a block's own scales
            data.stands_for = tuple(layer.weight.shape)
            self.weight = torch.nn.Parameter(data, requires_grad=False)
            self.weight.stands_for = data.stands_for
            self.bias = layer.bias
            self.in_features, self.out_features = layer.in_features, layer.out_features

        def forward(self, x):
            plain = self.weight.as_subclass(torch.Tensor)[:, : self.in_features]
            weight = plain.view(torch.int8).to(x.dtype) * self.scale
            return torch.nn.functional.linear(x, weight, self.bias)

    network = model.model.diffusion_model
    blocks = ("double_blocks", "single_blocks")
    for name, layer in list(network.named_modules()):
        if isinstance(layer, torch.nn.Linear) and name.startswith(blocks):
            parent, _, place = name.rpartition(".")
            setattr(network.get_submodule(parent), place, Unpacking(layer))
    return model


@pytest.mark.parametrize("name", EVERY)
def test_weights_that_are_packed_as_gguf_packs_them(load_tiny, patched, record_of, name):
    packed = pack_weights(load_tiny("flux"))
    plain = load_tiny("flux")
    records = []
    for model in (packed, plain):
        one = patched(model, name)
        out = sample(one, steps=STEPS)
        assert out.isfinite().all()
        records.append(record_of(one))
    packed, plain = records
    assert acts(packed, name) and packed.family == plain.family
    # Matrices cost by what they stand for, not by their bytes.
    assert packed.totals["full_flops"] == plain.totals["full_flops"]


# LoRA hooks, and a LoRA on the model.


@pytest.mark.parametrize("name", EVERY)
def test_a_lora_hook_whose_strength_has_keyframes(tiny_flux, patched, record_of, name):
    """Nothing is predicted across the beginning of one: it is put where a step would be skipped."""
    model = patched(with_lora(tiny_flux, seed=2), name)
    about = dict(steps=STEPS, cfg=2.0)
    sample(model, positive=hooked(), **about)
    undisturbed = record_of(model).strip(0)
    sampling = model.get_model_object("model_sampling")
    skipped = undisturbed.find(".") if name in WHOLE else STEPS // 2
    assert skipped > 0
    sigmas = sigmas_of(model, STEPS)
    wanted = float(sigmas[skipped - 1] + sigmas[skipped]) / 2
    start = min(
        (i / 1000 for i in range(1000)), key=lambda p: abs(sampling.percent_to_sigma(p) - wanted)
    )
    out = sample(model, positive=hooked(keyframes=[(1.0, 0.0), (0.3, start)]), **about)
    record = record_of(model)
    assert out.isfinite().all() and record.status == "finished" and acts(record, name)
    if name in WHOLE:
        planned = name == "accelerate 2"  # around it: nothing had to be computed besides
        assert record.strip(0)[skipped] == "#"
        assert ("cond_without_history" in codes(record)) != planned


# Context windows.


@pytest.mark.parametrize("name", EVERY)
def test_context_windows_are_computed_in_full(family, patched, record_of, core, name):
    model, latent = family("wan")
    video = torch.zeros(1, latent[0], 6, *latent[2:])
    (windowed,) = core(
        "nodes_context_windows.py",
        "ContextWindowsManual",
        model=model,
        context_length=4,
        context_overlap=1,
        context_schedule="standard_static",
        fuse_method="pyramid",
        dim=2,
    )
    full = sample(windowed, steps=STEPS, latent=video)
    assert not torch.equal(full, sample(model, steps=STEPS, latent=video))
    one = patched(windowed, name)
    assert torch.equal(sample(one, steps=STEPS, latent=video), full)
    assert "context_windows" in codes(record_of(one))


# torch.compile.


@pytest.mark.parametrize("first", ["compiled", "patched"])
def test_a_compiled_model_skips_what_a_plain_one_does(tiny_flux, patched, record_of, first):
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    plain = patched(tiny_flux, "accelerate 2")
    wanted = sample(plain, steps=STEPS)
    model = tiny_flux.clone()
    if first == "compiled":
        set_torch_compile_wrapper(model, backend="aot_eager")
        model = patched(model, "accelerate 2")
    else:
        model = patched(model, "accelerate 2")
        set_torch_compile_wrapper(model, backend="aot_eager")
    out = sample(model, steps=STEPS)
    assert record_of(model).strip(0) == record_of(plain).strip(0)
    assert record_of(model).totals["skipped"] > 0
    assert (out - wanted).abs().max() < 1e-4 * wanted.abs().max()
    torch.compiler.reset()


# Blocks that are swapped, and little memory.


@pytest.fixture
def swapping():
    """swapping(model): the model with weights of a block that are only there while it runs."""
    hooks = []

    def swapping(model):
        network = model.model.diffusion_model
        for block in [*network.double_blocks, *network.single_blocks]:
            kept = {name: p.data.clone() for name, p in block.named_parameters()}

            def fetch(module, *_, kept=kept):
                for name, parameter in module.named_parameters():
                    parameter.data.copy_(kept[name])

            def leave(module, *_):
                for parameter in module.parameters():
                    parameter.data.fill_(math.nan)

            hooks.append(block.register_forward_pre_hook(fetch))
            hooks.append(block.register_forward_hook(leave))
            leave(block)
        return model

    yield swapping
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("name", EVERY)
def test_blocks_that_are_swapped_in_and_out(load_tiny, patched, record_of, swapping, name):
    plain = patched(load_tiny("flux"), name)
    wanted = sample(plain, steps=STEPS, cfg=2.0)
    model = patched(swapping(load_tiny("flux")), name)
    assert torch.equal(sample(model, steps=STEPS, cfg=2.0), wanted)
    assert record_of(model).strip(0) == record_of(plain).strip(0) and acts(record_of(model), name)


@pytest.mark.parametrize("name", EVERY)
def test_with_little_memory_weights_stay_behind_and_the_picture_is_the_same(
    load_tiny, patched, record_of, monkeypatch, name
):
    """As --lowvram and --novram have it."""
    import comfy.model_patcher

    plain = patched(load_tiny("flux"), name)
    wanted = sample(plain, steps=STEPS, cfg=2.0)
    real = comfy.model_patcher.ModelPatcher.load
    loads = []

    def load(self, device_to=None, lowvram_model_memory=0, **named):
        loads.append(self)
        return real(self, device_to, lowvram_model_memory=1000, **named)

    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "load", load)
    model = patched(load_tiny("flux"), name)
    out = sample(model, steps=STEPS, cfg=2.0)
    assert loads and model.lowvram_patch_counter() is not None
    assert torch.equal(out, wanted)
    assert record_of(model).strip(0) == record_of(plain).strip(0)


# Other packs' caches, which skip the model in their own way.


@pytest.mark.parametrize("name", EVERY)
def test_another_cache_that_answers_in_the_models_place(tiny_flux, patched, record_of, name):
    """As TeaCache's and its like do, by a forward of their own: every third call is the last
    answer."""
    from comfy.patcher_extension import WrappersMP

    state = SimpleNamespace(calls=0, last=None)

    def cached(executor, *arguments, **named):
        state.calls += 1
        if (
            state.calls % 3 == 0
            and state.last is not None
            and state.last.shape == arguments[0].shape
        ):
            return state.last
        state.last = executor(*arguments, **named)
        return state.last

    model = tiny_flux.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "another cache", cached)
    model = patched(model, name)
    out = sample(model, steps=STEPS)
    record = record_of(model)
    assert out.isfinite().all() and record.status == "finished"
    assert len(record.evaluations) == STEPS
    if name in ("reuse", "region"):
        assert "hooks_not_called" in codes(record)


# Tokens that another node takes out: of references (FLUX.2's KV cache), or of the picture.


@pytest.mark.parametrize("name", EVERY)
def test_flux_kv_cache_which_drops_the_tokens_of_references_in_mid_run(
    family, patched, record_of, core, name
):
    """The host's node, whose cache outlives a run."""
    model, latent = family("flux2")
    references = [torch.randn(1, *latent) for _ in range(2)]
    settings = dict(
        steps=STEPS,
        positive=make_conditioning(0, reference_latents=references),
        latent=torch.zeros(1, *latent),
    )

    def cached():
        return core("nodes_flux.py", "FluxKVCache", model=model)[0]

    full = sample(cached(), **settings)
    one = patched(cached(), name)
    out = sample(one, **settings)
    record = record_of(one)
    assert record.status == "finished" and len(record.evaluations) == STEPS
    if name in ("reuse", "region"):
        assert torch.equal(out, full) and codes(record) & {"blocks_patched", "reference_at_zero"}
    else:
        assert out.isfinite().all()


def sigmas_seen(model):
    """Sigmas that a FLUX model was called at, each once, as they come."""
    from comfy.patcher_extension import WrappersMP

    seen = []

    def look(executor, *arguments, **named):
        sigma = float(arguments[7]["sigmas"][0])
        if sigma not in seen:
            seen.append(sigma)
        return executor(*arguments, **named)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "sigmas seen", look)
    return seen


def without_references(model, first):
    """A model whose references' tokens are dropped from its evaluation `first` on, before the blocks; the
    picture has 64."""
    model = model.clone()
    seen = sigmas_seen(model)

    def drop(args):
        if len(seen) > first:
            args = {**args, **{place: args[place][:, :64] for place in ("img", "img_ids")}}
        return args

    model.set_model_post_input_patch(drop)
    return model


def merged(model, first, share=4):
    """A model of whose tokens a part does not pass the blocks from its evaluation `first` on, as token
    merging has it: the last ones are left out, and stand for themselves again at the end."""
    model = model.clone()
    seen = sigmas_seen(model)
    left = []

    def take(args):
        left.clear()
        if len(seen) <= first:
            return args
        number = args["img"].shape[1] // share
        left.append(args["img"][:, -number:])
        return {**args, **{place: args[place][:, :-number] for place in ("img", "img_ids")}}

    class PutBack(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x, *rest, **named):
            return self.layer(torch.cat([x, *left], 1), *rest, **named)

    model.set_model_post_input_patch(take)
    layer = model.get_model_object("diffusion_model.final_layer")
    model.add_object_patch("diffusion_model.final_layer", PutBack(layer))
    return model


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("first", [0, 5])
def test_where_tokens_are_merged_the_run_goes_on_in_full_and_says_why(
    tiny_flux, patched, record_of, name, first
):
    settings = dict(steps=STEPS, cfg=2.0)
    model = patched(merged(tiny_flux, first), name)
    out = sample(model, **settings)
    record = record_of(model)
    assert out.isfinite().all() and record.status == "finished"
    assert len(record.evaluations) == STEPS
    assert ("tokens_missing" in codes(record)) == (name in INSIDE)
    if name in WHOLE:
        assert acts(record, name)
        return
    after = record.evaluations[first + 1 :]
    assert not any("reuse" in e.modes or e.sparse or 0 < min(e.token_share) < 1 for e in after)
    if name != "per token":  # which skips whole evaluations, too
        assert acts(record, name) == (first > 0)
        assert first or torch.equal(out, sample(merged(tiny_flux, first), **settings))


@pytest.mark.parametrize("name", ["reuse", "region", "sparse"])
def test_where_tokens_of_references_go_nothing_that_was_kept_of_them_is_taken_for_the_pictures(
    tiny_flux, patched, record_of, name
):
    settings = dict(
        steps=STEPS,
        positive=make_conditioning(0, reference_latents=[torch.randn(1, 16, 16, 16)]),
    )
    undisturbed = patched(tiny_flux, name)
    sample(undisturbed, **settings)
    evaluations = record_of(undisturbed).evaluations
    first = next(
        e.index for e in evaluations if "reuse" in e.modes or e.sparse or e.token_share != (1.0,)
    )
    model = patched(without_references(tiny_flux, max(first, 1)), name)
    out = sample(model, **settings)
    record = record_of(model)
    assert out.isfinite().all() and record.status == "finished"
    assert ("tokens_missing" in codes(record)) == (name != "sparse")
    assert (
        record.evaluations[first].token_share == (1.0,)
        and "reuse" not in record.evaluations[first].modes
    )


@pytest.mark.parametrize("name", INSIDE)
def test_a_host_that_calls_no_hooks_computes_in_full_and_the_report_says_so(
    tiny_flux, patched, record_of, name
):
    """A class that lost its block hooks, or another pack's forward in the place of the host's."""
    from comfy.patcher_extension import WrappersMP

    def without_hooks(executor, *arguments, **named):
        options = {**arguments[7], "patches_replace": {}}
        return executor(*arguments[:7], options, *arguments[8:], **named)

    plain = tiny_flux.clone()
    plain.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "no hooks", without_hooks)
    model = patched(plain, name)
    out = sample(model, steps=STEPS, cfg=2.0)
    record = record_of(model)
    assert "hooks_not_called" in codes(record)
    if name != "per token":  # which skips whole evaluations, too
        assert torch.equal(out, sample(plain, steps=STEPS, cfg=2.0)) and not acts(record, name)


# Bad input: models that nobody knows, and latents of any shape.


UNKNOWN = {"ACEStep": "1-D", "WAN21_T2V": "5-D", "LTXAV": "nested"}


@pytest.mark.parametrize("kind", UNKNOWN, ids=UNKNOWN.values())
@pytest.mark.parametrize("name", EVERY)
def test_a_model_whose_class_nobody_knows_goes_through_every_node(
    comfy_host, patched, record_of, kind, name
):
    from evaluation.host_models import TINY

    if kind not in TINY:
        pytest.skip(f"{kind} came with a later ComfyUI than {comfy_host.version}")
    tiny = TINY[kind].model
    model = tiny.build()
    network = model.model.diffusion_model
    network.__class__ = type("Novelty", (type(network),), {})
    one = even_so(patched(model, name))
    out = tiny.sample(one, steps=8)
    record = record_of(one)
    assert all(part.isfinite().all() for part in out)
    assert record.status == "finished" and record.family == "Novelty (unverified)"
    if name in WHOLE:
        assert record.totals["skipped"] > 0
    else:
        full = tiny.sample(model, steps=8)
        assert all(torch.equal(a, b) for a, b in zip(out, full, strict=True))
        assert codes(record) & {"unknown_to_region", "blocks_unknown", "attention_dense"}


@pytest.mark.parametrize("name", EVERY)
def test_a_latent_that_changes_its_size_goes_through_every_node(tiny_sd3, patched, record_of, name):
    def shrinking(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for i in range(len(sigmas) - 1):
            x = x[..., :-2] if i == 6 else x
            derivative = (x - model(x, sigmas[i] * x.new_ones(len(x)), **extra_args)) / sigmas[i]
            x = x + derivative * (sigmas[i + 1] - sigmas[i])
        return x

    model = patched(tiny_sd3, name)
    out = custom(model, shrinking, sigmas_of(model, STEPS), cfg=2.0, latent=empty_latent())
    assert out.isfinite().all() and out.shape[-1] == 14
    assert "latent_resized" in codes(record_of(model))
