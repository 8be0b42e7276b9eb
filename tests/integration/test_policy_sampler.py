"""RAPID Policy Sampler in the real ComfyUI: jumps off the grid, image by image."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import comfy.conds as conds
import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch

from rapid_testing.sampling import empty_latent, make_conditioning

STEPS = 8
FULL = dict(step=[0.0, 0.0], cache=[9.0, -9.0], sparse=[9.0, 0.0, 0.0, 0.0])  # recompute everything


@pytest.fixture
def loaded(comfy_host, pack, pack_module):
    """loaded(kind, model, **logits): a policy, as RAPID Load Policy gives it, whose heads always
    answer these logits; with wild=True the step head answers to what it sees."""
    import folder_paths

    files, module = (
        pack_module("rapid_core.policy_file.policies"),
        pack_module("rapid_core.techniques.heads.rapid3"),
    )
    write, written = pack_module("rapid_core.policy_file.format").write, []

    def load(kind, model, names=None, wild=False, **logits):
        network = model.model.diffusion_model
        hidden = getattr(network, pack_module("rapid_core.architectures").describe(network).hidden)
        torch.manual_seed(5)
        heads = module.Heads(16, hidden, names or tuple(logits) or module.HEADS, width=16)
        for name, values in logits.items():
            heads.heads[name].fc2.weight.data.mul_(3000.0 if wild else 0.0)
            heads.heads[name].fc2.bias.data.copy_(torch.tensor(values))
        metadata = dict(
            architecture=kind,
            base_model="tiny",
            budgets=[2.0],
            reward="psnr",
            licence="Apache-2.0",
            training_command="-",
            **files.head_metadata(heads, 0, (0.5, 0.25, 0.125)),
        )
        folder = Path(folder_paths.get_folder_paths("rapid_policies")[0])
        written.append(
            write(folder / "jumps.safetensors", "heads", metadata, files.head_tensors(heads)).path
        )
        return comfy_host.run_node("RAPID_LoadPolicy", policy="jumps.safetensors")[0]

    yield load
    for path in written:
        path.unlink(missing_ok=True)


@pytest.fixture
def jumper(comfy_host, pack):
    return lambda policy, **more: comfy_host.run_node("RAPID_PolicySampler", policy=policy, **more)[
        0
    ]


@pytest.fixture
def forced(pack_module):
    """forced(policy, sigmas): the node's sampler, its jumps replaced by the sampler's own noise
    levels."""
    module = pack_module("rapid_core.comfy.policy_sampler")

    def make(policy, sigmas):
        sampler = module.policy_sampler(policy, 1.0)
        sampler.extra_options["choose"] = lambda level, derivative, made: float(sigmas[made + 1])
        return sampler

    return make


@pytest.fixture
def report(comfy_host, pack_module):
    log_of = pack_module("rapid_core.comfy.chain").log_of
    return lambda model: log_of(model).records[-1]


def sigmas_of(model, steps=STEPS):
    return comfy.samplers.calculate_sigmas(
        model.get_model_object("model_sampling"), "simple", steps
    )


def draw(
    model,
    sampler,
    sigmas=None,
    cfg=1.0,
    batch=1,
    latent=None,
    rows=None,
    mask=None,
    prompts=1,
    **more,
):
    """Latents of SamplerCustom's own call. rows: images of the batch that are drawn alone, with
    their noise, latent, mask and prompts."""
    sigmas = sigmas_of(model) if sigmas is None else sigmas
    latent = empty_latent(batch) if latent is None else latent
    noise = comfy.sample.prepare_noise(latent, 3)
    positive, negative = make_conditioning(0, batch=prompts), make_conditioning(1, batch=prompts)
    if rows is not None:
        noise, latent, mask = (None if t is None else t[rows] for t in (noise, latent, mask))
        for cond in (positive[0], negative[0]) if prompts > 1 else ():
            cond[0], cond[1]["pooled_output"] = cond[0][rows], cond[1]["pooled_output"][rows]
    with torch.inference_mode():
        return comfy.sample.sample_custom(
            model,
            noise,
            cfg,
            sampler,
            sigmas,
            positive,
            negative,
            latent,
            noise_mask=mask,
            disable_pbar=True,
            seed=3,
            **more,
        ).clone()


def levels_of(record, image=0):
    return [e.sigma for e in record.evaluations if e.levels[image] != "hold"]


def half_mask(batch=1):
    mask = torch.zeros(batch, 1, 16, 16)
    for i in range(batch):
        mask[i, :, :, 4 + 2 * i :] = 1
    return mask


@pytest.fixture(params=["flux", "sd3"])
def kind(request):
    return request.param


@pytest.fixture
def model(kind, request):
    return request.getfixturevalue(f"tiny_{kind}")


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_forced_to_the_samplers_levels_it_is_stock_euler(loaded, forced, model, report, kind, cfg):
    sigmas = sigmas_of(model)
    found = draw(model, forced(loaded(kind, model, **FULL), sigmas), sigmas, cfg)
    assert torch.equal(found, draw(model, comfy.samplers.sampler_object("euler"), sigmas, cfg))
    record = report(model)
    assert levels_of(record) == sigmas[:-1].tolist() and record.totals["computed"] == STEPS
    assert record.totals["speedup_allowed"] == pytest.approx(1.0) and record.status == "finished"


@pytest.mark.parametrize(
    "first, last, masked", [(3, STEPS, False), (0, 4, False), (0, STEPS, True), (2, 6, True)]
)
def test_image_to_image_split_sigmas_and_inpainting_are_stock_eulers_too(
    loaded, forced, jumper, tiny_sd3, report, first, last, masked
):
    sigmas, policy = sigmas_of(tiny_sd3)[first : last + 1], loaded("sd3", tiny_sd3, step=[2.0, 0.0])
    latent = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(8))
    given = dict(sigmas=sigmas, cfg=2.0, latent=latent, mask=half_mask() if masked else None)
    wanted = draw(tiny_sd3, comfy.samplers.sampler_object("euler"), **given)
    assert torch.equal(draw(tiny_sd3, forced(policy, sigmas), **given), wanted)
    jumped, levels = draw(tiny_sd3, jumper(policy), **given), levels_of(report(tiny_sd3))
    assert levels[0] == float(sigmas[0]) and min(levels) > float(sigmas[-1]) and len(levels) > 1
    assert not torch.equal(jumped, wanted) and torch.isfinite(jumped).all()
    if masked and last == STEPS:
        kept = half_mask()[0, 0] == 0
        assert torch.allclose(jumped[..., kept], latent[..., kept], atol=1e-4)


def test_jumps_halve_the_noise_level_and_the_last_one_ends_at_the_end(
    loaded, jumper, tiny_sd3, report
):
    policy = loaded("sd3", tiny_sd3, step=[0.0, 0.0])
    draw(tiny_sd3, jumper(policy), cfg=2.0)
    wanted = [1.0, 0.5, 0.25, 0.125, 0.062, 0.031, 0.015]  # the next would be 7 thousandths
    assert levels_of(report(tiny_sd3)) == pytest.approx(wanted, abs=1e-6)
    assert f"7 evaluations instead of {STEPS}" in report(tiny_sd3).text()
    draw(tiny_sd3, jumper(policy), torch.tensor([0.9, 0.8, 0.6, 0.4, 0.3]))
    assert levels_of(report(tiny_sd3)) == pytest.approx([0.9, 0.45], abs=1e-6)


@pytest.mark.parametrize("speedup, most", [(1.0, 8), (2.0, 4), (3.1, 2), (6.0, 1)])
def test_the_speedup_is_a_ceiling(loaded, jumper, tiny_sd3, report, speedup, most):
    policy = loaded("sd3", tiny_sd3, step=[4.0, -4.0])  # jumps of a thousandth
    draw(tiny_sd3, jumper(policy, speedup=speedup))
    levels = levels_of(report(tiny_sd3))
    assert len(levels) == most and levels == sorted(levels, reverse=True)
    assert report(tiny_sd3).totals["speedup_allowed"] >= speedup - 1e-6


@pytest.mark.parametrize("prompts, cfg, masked", [(1, 1.0, False), (2, 3.0, True)])
def test_each_image_of_a_batch_is_what_it_is_alone(
    loaded, jumper, model, report, kind, prompts, cfg, masked
):
    sampler = jumper(loaded(kind, model, wild=True, **{**FULL, "step": [1.0, 0.5]}))
    given = dict(cfg=cfg, batch=2, prompts=prompts, mask=half_mask(2) if masked else None)
    both, record, shown = draw(model, sampler, **given), report(model), []
    together = [levels_of(record, i) for i in range(2)]
    assert together[0] != together[1] and record.shape[0] == 2
    for i in range(2):
        alone = draw(
            model,
            sampler,
            rows=slice(i, i + 1),
            **given,
            callback=lambda step, x0, x, total: shown.append((step, total, x0.shape)),
        )
        assert torch.equal(both[i], alone[0])
        assert levels_of(report(model)) == together[i]
    assert all(total == STEPS and shape == (1, 16, 16, 16) for _, total, shape in shown)


def test_the_progress_of_a_batch_never_goes_back_and_previews_all_of_it(loaded, jumper, tiny_sd3):
    sampler, seen = jumper(loaded("sd3", tiny_sd3, wild=True, step=[1.0, 0.5])), []
    draw(
        tiny_sd3,
        sampler,
        batch=3,
        callback=lambda step, x0, x, total: seen.append((step, total, x0.clone(), x)),
    )
    steps = [step for step, *_ in seen]
    assert steps == sorted(steps) and steps[0] >= 0 and steps[-1] == STEPS - 1
    assert all(
        total == STEPS and x0.shape == x.shape == (3, 16, 16, 16) for _, total, x0, x in seen
    )
    assert torch.equal(seen[0][2][2], seen[1][2][2]) and not torch.equal(
        seen[0][2][2], seen[-1][2][2]
    )


@pytest.mark.parametrize("batch", [1, 2])
def test_an_interrupted_run_leaves_nothing_behind(loaded, jumper, tiny_sd3, report, batch):
    sampler = jumper(loaded("sd3", tiny_sd3, wild=True, step=[1.0, 0.5], cache=[0.0, 0.0]))
    wanted, seen = draw(tiny_sd3, sampler, batch=batch, cfg=2.0), []
    for after in (1, 3 * batch - 1):

        def stop(step, x0, x, total, after=after):
            seen.append(step)
            if len(seen) > after:
                raise comfy.model_management.InterruptProcessingException

        seen.clear()
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            draw(tiny_sd3, sampler, batch=batch, cfg=2.0, callback=stop)
        assert report(tiny_sd3).status == "interrupted"
        assert torch.equal(draw(tiny_sd3, sampler, batch=batch, cfg=2.0), wanted)


def test_a_guider_is_as_it_was_after_a_batch_whatever_happened(loaded, jumper, tiny_sd3):
    guider, states = comfy.samplers.CFGGuider(tiny_sd3), []
    sampler = jumper(loaded("sd3", tiny_sd3, **FULL))
    inner = sampler.sampler_function

    def watched(model, x, sigmas, **more):
        guider = model.inner_model

        def look():
            return (guider.conds, model.noise, model.latent_image, guider.model_options)

        states.append(look())
        try:
            return inner(model, x, sigmas, **more)
        finally:
            states.append(look())

    sampler.sampler_function = watched
    guider.set_conds(make_conditioning(0, batch=2), make_conditioning(1))
    guider.set_cfg(2.0)
    latent = empty_latent(2)

    def fail(step, *_):
        if step > 1:
            raise RuntimeError("stop")

    with torch.inference_mode(), pytest.raises(RuntimeError, match="stop"):
        guider.sample(
            torch.randn_like(latent), latent, sampler, sigmas_of(tiny_sd3), callback=fail, seed=1
        )
    assert len(states) == 2 and all(a is b for a, b in zip(*states, strict=True))


def test_one_image_of_a_batch_is_cut_out_of_everything_and_put_back(pack_module):
    """Rows repeat as the host repeats them; conditions that a guider keeps for itself are cut as
    well."""
    slice_batch = pack_module("rapid_core.comfy.slice_batch").slice_batch
    rows, few = torch.arange(3.0)[:, None], torch.arange(2.0)[:, None]
    made = {
        "text": conds.CONDCrossAttn(rows),
        "refs": conds.CONDList([rows, few]),
        "n": conds.CONDConstant(rows),
    }
    positive = [{"uuid": 1, "model_conds": made, "mask": few}]
    guider = SimpleNamespace(
        conds={"positive": positive, "negative": []},
        extra=positive,
        original_conds=positive,
        cfg=2.0,
        loaded_models=[1],
    )
    model = SimpleNamespace(inner_model=guider, noise=rows, latent_image=rows)
    before = dict(vars(guider))
    with (
        pytest.raises(RuntimeError),
        slice_batch(model, 2, 3, {"denoise_mask": rows, "seed": 5}) as arguments,
    ):
        for (cond,) in (guider.conds["positive"], guider.extra):
            found = cond["model_conds"]
            assert found["text"].cond.item() == 2 and found["n"].cond is rows and cond["uuid"] == 1
            assert [c.item() for c in found["refs"].cond] == [2, 0] and cond["mask"].item() == 0
        assert [t.item() for t in (model.noise, model.latent_image, arguments["denoise_mask"])] == [
            2,
            2,
            2,
        ]
        assert (
            guider.original_conds is positive
            and guider.conds["negative"] == []
            and arguments["seed"] == 5
        )
        raise RuntimeError
    assert (
        all(getattr(guider, name) is value for name, value in before.items())
        and model.noise is rows
    )
    assert positive[0]["model_conds"]["text"].cond is rows


@pytest.mark.parametrize(
    "choice, levels, density",
    [
        (dict(cache=[-9.0, 9.0]), {"run", "reuse"}, 1.0),
        (dict(sparse=[0.0, 0.0, 9.0, 0.0]), {"run"}, 0.25),
    ],
)
def test_the_other_heads_act_as_they_do_in_a_patched_model(
    loaded, forced, model, pack_module, report, kind, choice, levels, density
):
    """Where jumps follow the grid: against the same heads on the model, and stock Euler."""
    sigmas, latent, policy = (
        sigmas_of(model, 4),
        empty_latent(1, 32, 32),
        loaded(kind, model, **{**FULL, **choice}),
    )
    sampler, sparsity = (
        forced(policy, sigmas),
        pack_module("rapid_core.types").Sparsity("gather", tile=16),
    )
    heads = sampler.extra_options["policy"] = replace(
        sampler.extra_options["policy"], sparsity=sparsity
    )
    patched = pack_module("rapid_core.comfy.chain").attach(
        model, replace(heads, use=("cache", "sparse"))
    )
    wanted = draw(patched, comfy.samplers.sampler_object("euler"), sigmas, 2.0, latent=latent)
    assert torch.equal(draw(model, sampler, sigmas, 2.0, latent=latent), wanted)
    ours, theirs = report(model), report(patched)
    assert [e.levels for e in ours.evaluations] == [e.levels for e in theirs.evaluations]
    assert [e.density for e in ours.evaluations] == [e.density for e in theirs.evaluations]
    assert levels == {e.levels[0] for e in ours.evaluations} and ours.evaluations[-1].density == (
        density,
    )
    assert ours.totals["flops"] == theirs.totals["flops"] < ours.totals["dense_flops"]


def test_the_step_head_is_shown_the_models_pooled_vector(
    loaded, jumper, tiny_sd3, pack_module, comfy_host, monkeypatch
):
    module, seen = pack_module("rapid_core.techniques.heads.jumps"), []
    real = module.pooled_vector

    def watched(*given):
        seen.append(real(*given))
        return seen[-1]

    monkeypatch.setattr(module, "pooled_vector", watched)
    policy = loaded("sd3", tiny_sd3, step=[0.0, 0.0])
    cached = comfy_host.run_node(
        "RAPID_CacheReuse",
        model=tiny_sd3,
        reuse_threshold=1e-9,
        start_percent=0.0,
        end_percent=1.0,
        max_consecutive=3,
        forecast_order=1,
        level="hold",
        guard=0.0,
    )[0]
    found = []
    for model in (tiny_sd3, cached):  # a run of its own, and the chain's
        seen.clear()
        draw(model, jumper(policy), cfg=2.0)
        assert len(seen) > 3 and all(known for _, known in seen)
        found.append(seen[0][0])
    assert torch.equal(*found) and found[0].abs().max() > 0


def test_on_a_family_without_block_hooks_only_the_steps_are_chosen(
    family, loaded, jumper, forced, report
):
    model, shape = family("lumina2")
    policy, latent = (
        loaded("lumina2", model, **{**FULL, "cache": [-9.0, 9.0]}),
        torch.zeros(1, *shape),
    )
    sigmas = sigmas_of(model, 4)
    found = draw(model, forced(policy, sigmas), sigmas, latent=latent)
    assert torch.equal(
        found, draw(model, comfy.samplers.sampler_object("euler"), sigmas, latent=latent)
    )
    draw(model, jumper(policy), sigmas, latent=latent)
    said = report(model).text()
    assert (
        "nothing is done by its heads cache, sparse: a sampler does not reach this model's blocks"
        in said
    )
    assert "pooled vector is not known" in said and report(model).totals["reused"] == 0


@pytest.mark.parametrize("batch", [1, 2])
def test_beside_another_technique_it_only_chooses_steps_and_the_record_says_so(
    loaded, jumper, tiny_sd3, report, comfy_host, batch
):
    cached = comfy_host.run_node(
        "RAPID_CacheReuse",
        model=tiny_sd3,
        reuse_threshold=9.0,
        start_percent=0.0,
        end_percent=1.0,
        max_consecutive=1,
        forecast_order=0,
        level="hold",
        guard=0.0,
    )[0]
    policy = loaded("sd3", tiny_sd3, **{**FULL, "cache": [-9.0, 9.0]})
    found, record = draw(cached, jumper(policy), cfg=2.0, batch=batch), report(cached)
    text = record.text()
    assert (
        torch.isfinite(found).all()
        and f"{'7, ' * (batch - 1)}7 evaluations instead of {STEPS}" in text
    )
    assert "nothing is done by its heads cache, sparse: the model has cache_reuse on it" in text
    if batch == 1:
        assert record.totals["held"] > 0 and record.totals["reused"] == 0
    else:
        assert "the sampler evaluates 1 latents at once, not 2" in text
        plain = draw(tiny_sd3, jumper(policy), cfg=2.0, batch=batch)
        assert not torch.equal(plain, found)  # there the cache head acts


class TestErrors:
    """What cannot be sampled so is named before anything is computed."""

    def test_a_plan_on_the_model_is_refused(self, loaded, jumper, tiny_sd3, comfy_host):
        fast = comfy_host.run_node("RAPID_Accelerate", model=tiny_sd3, speedup=2.0)[0]
        with pytest.raises(
            ValueError, match="RAPID Accelerate is on this model, and jumps.safetensors would be"
        ):
            draw(fast, jumper(loaded("sd3", tiny_sd3, step=[0.0, 0.0])))

    def test_easycache_is_refused(self, loaded, jumper, tiny_sd3, comfy_host):
        comfy_host.load_core_nodes("nodes_easycache.py")
        for node in ("EasyCache", "LazyCache"):
            model = comfy_host.run_node(
                node,
                model=tiny_sd3,
                reuse_threshold=0.2,
                start_percent=0.15,
                end_percent=0.95,
                verbose=False,
            )[0]
            with pytest.raises(ValueError, match="EasyCache or LazyCache is on this model"):
                draw(model, jumper(loaded("sd3", tiny_sd3, step=[0.0, 0.0])))

    def test_another_model_is_refused(self, loaded, jumper, tiny_sd3, tiny_flux):
        sampler = jumper(loaded("sd3", tiny_sd3, step=[0.0, 0.0]))
        with pytest.raises(
            ValueError, match="architecture = 'sd3', trained on tiny; this model is flux"
        ):
            draw(tiny_flux, sampler)

    def test_rising_sigmas_are_refused(self, loaded, jumper, tiny_sd3):
        with pytest.raises(ValueError, match="sigmas rise from 0 to 1; accepted are falling ones"):
            draw(
                tiny_sd3,
                jumper(loaded("sd3", tiny_sd3, step=[0.0, 0.0])),
                sigmas_of(tiny_sd3).flip(0),
            )

    def test_a_policy_without_a_step_head_is_refused_by_the_node(self, loaded, jumper, tiny_sd3):
        with pytest.raises(
            ValueError,
            match="jumps.safetensors: heads = cache: has no step head .* RAPID Accelerate",
        ):
            jumper(loaded("sd3", tiny_sd3, cache=[0.0, 0.0]))

    @pytest.mark.parametrize("speedup", [0.5, 7.0, float("nan"), "fast"])
    def test_a_speed_that_is_not_offered_is_refused(self, loaded, jumper, tiny_sd3, speedup):
        with pytest.raises(
            ValueError, match="RAPID Policy Sampler: speedup = .* accepted is a number from 1 to 6"
        ):
            jumper(loaded("sd3", tiny_sd3, step=[0.0, 0.0]), speedup=speedup)

    def test_what_a_batch_cannot_be_split_by_is_named(self, pack_module):
        cut = pack_module("rapid_core.comfy.slice_batch")._one
        hint = SimpleNamespace(
            previous_controlnet=SimpleNamespace(cond_hint_original=torch.zeros(2, 3, 8, 8))
        )
        hooks = SimpleNamespace(
            hooks=[SimpleNamespace(hook_keyframe=SimpleNamespace(keyframes=[1, 2]))]
        )
        strange = type("Strange", (conds.CONDRegular,), {})(torch.zeros(2, 3))
        cases = [
            ({"control": hint}, "a ControlNet has 2 hint images"),
            ({"hooks": hooks}, "a hook's keyframes"),
            ({"model_conds": {"c": strange}}, r"the condition c \(Strange\)"),
        ]
        for more, said in cases:
            with pytest.raises(
                ValueError, match=f"one after another, and {said}.*Set the batch size to 1"
            ):
                cut({"model_conds": {}, **more}, 1)


def test_it_is_a_sampler_for_both_custom_sampler_nodes(
    loaded, jumper, tiny_sd3, comfy_host, report
):
    node = comfy_host.nodes.NODE_CLASS_MAPPINGS["RAPID_PolicySampler"]
    assert list(node.INPUT_TYPES()["required"]) == ["policy"] and list(node.RETURN_TYPES) == [
        "SAMPLER"
    ]
    comfy_host.load_core_nodes("nodes_custom_sampler.py")
    sampler, sigmas = (
        jumper(loaded("sd3", tiny_sd3, wild=True, **{**FULL, "step": [1.0, 0.5]})),
        sigmas_of(tiny_sd3),
    )
    run, latent = comfy_host.run_node, {"samples": empty_latent(2)}
    positive, negative = make_conditioning(0), make_conditioning(1)
    simple = run(
        "SamplerCustom",
        model=tiny_sd3,
        add_noise=True,
        noise_seed=3,
        cfg=2.0,
        positive=positive,
        negative=negative,
        sampler=sampler,
        sigmas=sigmas,
        latent_image=latent,
    )
    guider = run("CFGGuider", model=tiny_sd3, positive=positive, negative=negative, cfg=2.0)[0]
    advanced = run(
        "SamplerCustomAdvanced",
        noise=run("RandomNoise", noise_seed=3)[0],
        guider=guider,
        sampler=sampler,
        sigmas=sigmas,
        latent_image=latent,
    )
    assert torch.equal(simple[0]["samples"], advanced[0]["samples"])
    assert torch.equal(simple[1]["samples"], advanced[1]["samples"]) and simple[1][
        "samples"
    ].shape == (2, 16, 16, 16)
    assert torch.equal(simple[0]["samples"], draw(tiny_sd3, sampler, sigmas, 2.0, batch=2))
    latents, text, picture = run("RAPID_Report", model=tiny_sd3, latent=simple[0])
    made = [len(levels_of(report(tiny_sd3), i)) for i in range(2)]
    assert (
        f"{made[0]}, {made[1]} evaluations instead of {STEPS}" in text
        and "rapid_policy on sd3, finished" in text
    )
