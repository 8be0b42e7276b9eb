"""RAPID Policy Sampler in the real ComfyUI: jumps off the grid, each image at sigmas of its own."""

from dataclasses import replace
from pathlib import Path

import comfy.controlnet
import comfy.hooks
import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch

from rapid_testing.sampling import empty_latent, make_conditioning

STEPS = 8
FULL = {"step": [0.0, 0.0], "cache": [9.0, -9.0], "sparse": [9.0, 0.0, 0.0, 0.0]}  # compute all
WILD = {**FULL, "step": [1.0, 0.5]}
SHARES = {0.3: 3, 0.6: 6, 0.45: 4}  # of a sigma that an image lands at: evaluations that it makes


@pytest.fixture
def load_policy(comfy_host, pack, pack_module):
    """load_policy(kind, model, **logits): a policy, as RAPID Load Policy gives it, whose heads
    always answer these logits; with wild=True the step head answers to what it sees."""
    import folder_paths

    describe = pack_module("rapid_core.architectures").describe
    files = pack_module("rapid_core.policy_file.heads")
    module = pack_module("rapid_core.techniques.heads.rapid3")
    write = pack_module("rapid_core.policy_file.format").write
    written = []

    def load(kind, model, wild=False, **logits):
        network = model.model.diffusion_model
        torch.manual_seed(5)
        heads = module.Heads(
            16, getattr(network, describe(network).hidden), tuple(logits), width=16
        )
        for name, values in logits.items():
            heads.heads[name].fc2.weight.data.mul_(3000.0 if wild else 0.0)
            heads.heads[name].fc2.bias.data.copy_(torch.tensor(values))
        metadata = {
            "architecture": kind,
            "base_model": "tiny",
            "budgets": [2.0],
            "reward": "psnr",
            "licence": "Apache-2.0",
            "training_command": "-",
            **files.head_metadata(heads, 0, (0.5, 0.25, 0.125)),
        }
        path = Path(folder_paths.get_folder_paths("rapid_policies")[0]) / "jumps.safetensors"
        written.append(write(path, "heads", metadata, files.head_tensors(heads)).path)
        return comfy_host.run_node("RAPID_LoadPolicy", policy="jumps.safetensors")[0]

    yield load
    for path in written:
        path.unlink(missing_ok=True)


@pytest.fixture
def jumper(comfy_host, pack):
    """jumper(policy, ...): the node's sampler."""

    def make(policy, **more):
        return comfy_host.run_node("RAPID_PolicySampler", policy=policy, **more)[0]

    return make


@pytest.fixture
def forced(pack_module):
    """forced(policy, sigmas): the node's sampler, its jumps replaced by these sigmas."""
    module = pack_module("rapid_core.comfy.policy_sampler")

    def make(policy, sigmas):
        sampler = module.policy_sampler(policy, 1.0)
        sampler.extra_options["choose"] = lambda images: [
            float(sigmas[image.made + 1]) for image in images
        ]
        return sampler

    return make


@pytest.fixture
def uneven(pack_module):
    """uneven(policy, shares): the node's sampler, where an image lands at its share of each
    sigma."""
    module = pack_module("rapid_core.comfy.policy_sampler")

    def make(policy, shares):
        def choose(images):
            landings = [image.sigma * shares[image.image] for image in images]
            return [landing if landing > 0.05 else 0.0 for landing in landings]

        sampler = module.policy_sampler(policy, 1.0)
        sampler.extra_options["choose"] = choose
        return sampler

    return make


@pytest.fixture
def report(pack_module):
    """report(model): record of the latest run; of the sampler's own where no node patched the
    model."""
    chain = pack_module("rapid_core.comfy.chain")

    def latest(model):
        own = chain.chain_of(model) is None
        return (chain.SAMPLER_LOG if own else chain.chain_of(model).log).records[-1]

    return latest


@pytest.fixture
def cached(comfy_host, pack):
    """cached(model, ...): a model with RAPID Cache Reuse on it."""

    def patch(model, **settings):
        settings = {"guard": 0.0, "start_percent": 0.0, "end_percent": 1.0, **settings}
        return comfy_host.run_node("RAPID_CacheReuse", model=model, level="skip", **settings)[0]

    return patch


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
    extra=None,
    **more,
):
    """Latents of SamplerCustom's own call. rows: images of the batch that are drawn alone, with
    their noise, latent, mask and prompts; extra: beside the positive prompt."""
    sigmas = sigmas_of(model) if sigmas is None else sigmas
    latent = empty_latent(batch) if latent is None else latent
    noise = comfy.sample.prepare_noise(latent, 3)
    positive = make_conditioning(0, batch=prompts, **(extra or {}))
    negative = make_conditioning(1, batch=prompts)
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


def sigmas_computed(record, image=0):
    """Sigmas at which an image was not skipped."""
    return [
        e.sigmas[image] if e.sigmas else e.sigma
        for e in record.evaluations
        if e.modes[image] != "skip"
    ]


def near(one, other):
    """Whether latents are alike but for rounding, which goes with their largest numbers."""
    return (one - other).abs().max() <= 1e-5 * other.abs().max()


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
def test_forced_to_the_samplers_sigmas_it_is_stock_euler(
    load_policy, forced, model, report, kind, cfg
):
    sigmas = sigmas_of(model)
    latent = draw(model, forced(load_policy(kind, model, **FULL), sigmas), sigmas, cfg)
    assert torch.equal(latent, draw(model, comfy.samplers.sampler_object("euler"), sigmas, cfg))
    record = report(model)
    assert sigmas_computed(record) == sigmas[:-1].tolist()
    assert record.totals["computed"] == STEPS and record.status == "finished"
    assert record.totals["speedup_theoretical"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "first, last, masked", [(3, STEPS, False), (0, 4, False), (0, STEPS, True), (2, 6, True)]
)
def test_image_to_image_split_sigmas_and_inpainting_are_stock_eulers_too(
    load_policy, forced, jumper, tiny_sd3, report, first, last, masked
):
    sigmas = sigmas_of(tiny_sd3)[first : last + 1]
    policy = load_policy("sd3", tiny_sd3, step=[2.0, 0.0])
    given = {
        "sigmas": sigmas,
        "cfg": 2.0,
        "latent": torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(8)),
        "mask": half_mask() if masked else None,
    }
    stock = draw(tiny_sd3, comfy.samplers.sampler_object("euler"), **given)
    assert torch.equal(draw(tiny_sd3, forced(policy, sigmas), **given), stock)
    jumped = draw(tiny_sd3, jumper(policy), **given)
    computed = sigmas_computed(report(tiny_sd3))
    assert computed[0] == float(sigmas[0])
    assert min(computed) > float(sigmas[-1]) and len(computed) > 1
    assert not torch.equal(jumped, stock) and torch.isfinite(jumped).all()
    if masked and last == STEPS:
        given_part = half_mask()[0, 0] == 0
        assert torch.allclose(jumped[..., given_part], given["latent"][..., given_part], atol=1e-4)


def test_jumps_halve_sigma_and_the_last_one_ends_at_the_end(
    load_policy, jumper, tiny_sd3, report, reason
):
    policy = load_policy("sd3", tiny_sd3, step=[0.0, 0.0])
    draw(tiny_sd3, jumper(policy), cfg=2.0)
    halves = [1.0, 0.5, 0.25, 0.125, 0.062, 0.031, 0.015]  # the next would be 7 thousandths
    assert sigmas_computed(report(tiny_sd3)) == pytest.approx(halves, abs=1e-6)
    chose = {"file": "jumps.safetensors", "evaluations": "7", "steps": STEPS}
    assert reason("SAMPLER_CHOSE", **chose) in report(tiny_sd3).notes
    assert f"7 evaluations instead of {STEPS}" in report(tiny_sd3).text()
    draw(tiny_sd3, jumper(policy), torch.tensor([0.9, 0.8, 0.6, 0.4, 0.3]))
    assert sigmas_computed(report(tiny_sd3)) == pytest.approx([0.9, 0.45], abs=1e-6)


@pytest.mark.parametrize("speedup, most", [(1.0, 8), (2.0, 4), (3.1, 2), (6.0, 1)])
def test_the_speedup_is_a_ceiling(load_policy, jumper, tiny_sd3, report, speedup, most):
    policy = load_policy("sd3", tiny_sd3, step=[4.0, -4.0])  # jumps of a thousandth
    draw(tiny_sd3, jumper(policy, speedup=speedup))
    computed = sigmas_computed(report(tiny_sd3))
    assert len(computed) == most and computed == sorted(computed, reverse=True)
    assert report(tiny_sd3).totals["speedup_theoretical"] >= speedup - 1e-6


@pytest.mark.parametrize("prompts, cfg, masked", [(1, 1.0, False), (2, 3.0, True)])
def test_each_image_of_a_batch_is_what_it_is_alone(
    load_policy, jumper, model, report, kind, prompts, cfg, masked
):
    sampler = jumper(load_policy(kind, model, wild=True, **WILD))
    given = {"cfg": cfg, "batch": 2, "prompts": prompts, "mask": half_mask(2) if masked else None}
    both = draw(model, sampler, **given)
    record = report(model)
    together = [sigmas_computed(record, i) for i in range(2)]
    assert together[0] != together[1] and record.shape[0] == 2
    shown = []
    for i in range(2):
        alone = draw(
            model,
            sampler,
            rows=slice(i, i + 1),
            **given,
            callback=lambda step, x0, x, total: shown.append((total, x0.shape)),
        )
        assert near(both[i], alone[0])
        assert sigmas_computed(report(model)) == pytest.approx(together[i], abs=1e-6)
    assert all(total == STEPS and shape == (1, 16, 16, 16) for total, shape in shown)


@pytest.mark.parametrize("beside", [False, True])
def test_an_image_that_arrives_before_others_is_what_it_is_alone(
    load_policy, uneven, tiny_sd3, cached, report, beside
):
    """By itself, and where another technique skips some of its evaluations."""
    settings = {"reuse_threshold": 9.0, "max_consecutive": 1, "forecast_order": 1}
    model = cached(tiny_sd3, **settings) if beside else tiny_sd3
    policy = load_policy("sd3", tiny_sd3, **FULL)
    both = draw(model, uneven(policy, list(SHARES)), cfg=2.0, batch=3)
    together = report(model)
    strips = []
    for i, (share, made) in enumerate(SHARES.items()):
        sampler = uneven(policy, [share])
        alone = draw(model, sampler, cfg=2.0, batch=3, rows=slice(i, i + 1))
        strip = report(model).strip(0)
        strips.append(strip)
        assert near(both[i], alone[0])
        assert len(strip) == made
        assert together.strip(i) == strip + "." * (len(together.evaluations) - made)
        assert sigmas_computed(together, i) == sigmas_computed(report(model))
    assert ("." in "".join(strips)) is beside


@pytest.mark.parametrize("beside", [False, True])
def test_a_batch_counts_what_each_image_was_evaluated(
    load_policy, uneven, tiny_sd3, cached, report, pack_module, reason, beside
):
    """An image that has arrived costs nothing any more, and would not in full either."""
    settings = {"reuse_threshold": 9.0, "max_consecutive": 1, "forecast_order": 1}
    model = cached(tiny_sd3, **settings) if beside else tiny_sd3
    sampler = uneven(load_policy("sd3", tiny_sd3, step=[0.0, 0.0]), list(SHARES))
    latent = draw(model, sampler, cfg=2.0, batch=3)
    record = pack_module("rapid_core.comfy.chain").record_of(model, latent)
    assert record is report(model)
    made = list(SHARES.values())
    computed = sum(len(sigmas_computed(record, i)) for i in range(3))
    for i, number in enumerate(made):
        full = [e.full_cost[i] > 0 for e in record.evaluations]
        assert full == [n < number for n in range(max(made))]
        cost = [e.cost[i] > 0 for e in record.evaluations]
        assert cost == [mark == "#" for mark in record.strip(i)]
    evaluations = sum(made) if beside else STEPS * 3
    totals = record.totals
    assert totals["evaluations"] == record.full_evaluations == evaluations
    assert totals["computed"] == computed and (computed < sum(made)) is beside
    assert totals["skipped"] == evaluations - computed
    assert totals["speedup_theoretical"] == pytest.approx(evaluations / computed, rel=1e-3)
    chose = {"file": "jumps.safetensors", "evaluations": "3, 6, 4", "steps": STEPS}
    short = {"steps": STEPS, "full": 3, "evaluations": max(made)}
    notes = (reason("SAMPLER_CHOSE", **chose), reason("LITTLE_SHORT", **short))
    assert record.notes == notes[: 1 + beside]


def test_the_progress_of_a_batch_never_goes_back_and_previews_all_of_it(
    load_policy, uneven, tiny_sd3
):
    """An image that has arrived is shown as it was."""
    sampler = uneven(load_policy("sd3", tiny_sd3, step=[0.0, 0.0]), list(SHARES))
    seen = []
    draw(
        tiny_sd3,
        sampler,
        batch=3,
        callback=lambda step, x0, x, total: seen.append((step, total, x0.clone(), x.shape)),
    )
    steps = [step for step, *_ in seen]
    assert steps == sorted(steps) and steps[0] >= 0 and steps[-1] == STEPS - 1
    for _, total, x0, shape in seen:
        assert total == STEPS and x0.shape == shape == (3, 16, 16, 16)
    for i, made in enumerate(SHARES.values()):
        previews = [x0[i] for _, _, x0, _ in seen]
        changed = [not torch.equal(a, b) for a, b in zip(previews, previews[1:], strict=False)]
        assert changed == [n + 1 < made for n in range(len(seen) - 1)]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupted_run_leaves_nothing_behind(
    load_policy, jumper, tiny_sd3, report, batch, after
):
    sampler = jumper(load_policy("sd3", tiny_sd3, wild=True, step=[1.0, 0.5], cache=[0.0, 0.0]))
    given = {"batch": batch, "cfg": 2.0}
    undisturbed = draw(tiny_sd3, sampler, **given)
    seen = []

    def stop(step, x0, x, total):
        seen.append(step)
        if len(seen) > after:
            raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        draw(tiny_sd3, sampler, **given, callback=stop)
    assert report(tiny_sd3).status == "interrupted"
    assert torch.equal(draw(tiny_sd3, sampler, **given), undisturbed)


def test_a_guider_is_as_it_was_after_a_batch_whatever_happened(load_policy, jumper, tiny_sd3):
    guider = comfy.samplers.CFGGuider(tiny_sd3)
    sampler = jumper(load_policy("sd3", tiny_sd3, **FULL))
    inner = sampler.sampler_function
    states = []

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


@pytest.mark.parametrize(
    "choice, modes, density",
    [
        ({"cache": [-9.0, 9.0]}, {"run", "reuse"}, 1.0),
        ({"sparse": [0.0, 0.0, 9.0, 0.0]}, {"run"}, 0.25),
    ],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_the_other_heads_act_as_they_do_in_a_patched_model(
    load_policy, forced, model, pack_module, report, kind, choice, modes, density, batch
):
    """Where jumps follow the grid: against the same heads on the model, and stock Euler."""
    sigmas = sigmas_of(model, 4)
    latent = empty_latent(batch, 32, 32)
    sampler = forced(load_policy(kind, model, **{**FULL, **choice}), sigmas)
    sparsity = pack_module("rapid_core.types").Sparsity("gather", tile=16)
    heads = replace(sampler.extra_options["policy"], sparsity=sparsity)
    sampler.extra_options["policy"] = heads
    patched = pack_module("rapid_core.comfy.chain").attach(
        model, replace(heads, use=("cache", "sparse"))
    )
    stock = draw(patched, comfy.samplers.sampler_object("euler"), sigmas, 2.0, latent=latent)
    assert torch.equal(draw(model, sampler, sigmas, 2.0, latent=latent), stock)
    ours = report(model)
    theirs = report(patched)
    assert [e.modes for e in ours.evaluations] == [e.modes for e in theirs.evaluations]
    assert [e.density for e in ours.evaluations] == [e.density for e in theirs.evaluations]
    assert modes == {e.modes[0] for e in ours.evaluations}
    assert ours.evaluations[-1].density == (density,) * batch
    assert ours.totals["flops"] == theirs.totals["flops"] < ours.totals["full_flops"]


def test_the_step_head_is_shown_the_models_pooled_vector(
    load_policy, jumper, tiny_sd3, cached, pack_module, monkeypatch
):
    module = pack_module("rapid_core.techniques.heads.jumps")
    real = module.pooled_vector
    seen = []

    def watched(*given):
        seen.append(real(*given))
        return seen[-1]

    monkeypatch.setattr(module, "pooled_vector", watched)
    policy = load_policy("sd3", tiny_sd3, step=[0.0, 0.0])
    patched = cached(tiny_sd3, reuse_threshold=1e-9, max_consecutive=3, forecast_order=1)
    vectors = []
    for model in (tiny_sd3, patched):  # a run of its own, and the chain's
        seen.clear()
        draw(model, jumper(policy), cfg=2.0)
        assert len(seen) > 3 and all(known for _, known in seen)
        vectors.append(seen[0][0])
    assert torch.equal(*vectors) and vectors[0].abs().max() > 0


def test_on_a_family_without_block_hooks_only_the_steps_are_chosen(
    family, load_policy, jumper, forced, report, reason
):
    model, shape = family("lumina2")
    policy = load_policy("lumina2", model, **{**FULL, "cache": [-9.0, 9.0]})
    latent = torch.zeros(1, *shape)
    sigmas = sigmas_of(model, 4)
    stock = draw(model, comfy.samplers.sampler_object("euler"), sigmas, latent=latent)
    assert torch.equal(draw(model, forced(policy, sigmas), sigmas, latent=latent), stock)
    draw(model, jumper(policy), sigmas, latent=latent)
    file = "jumps.safetensors"
    why = reason("SAMPLER_WITHOUT_BLOCKS")
    idle = reason("SAMPLER_HEADS_IDLE", file=file, heads="cache, sparse", why=why)
    assert {idle, reason("POOLED_UNKNOWN", file=file)} <= set(report(model).notes)
    assert report(model).totals["reused"] == 0


@pytest.mark.parametrize("batch", [1, 2])
def test_beside_another_technique_it_only_chooses_steps_and_the_record_says_so(
    load_policy, jumper, tiny_sd3, cached, report, reason, batch
):
    patched = cached(tiny_sd3, reuse_threshold=9.0, max_consecutive=1, forecast_order=0)
    policy = load_policy("sd3", tiny_sd3, **{**FULL, "cache": [-9.0, 9.0]})
    latent = draw(patched, jumper(policy), cfg=2.0, batch=batch)
    record = report(patched)
    assert torch.isfinite(latent).all()
    file = "jumps.safetensors"
    made = ", ".join(["7"] * batch)
    why = reason("MODEL_HAS_TECHNIQUES", techniques="cache_reuse")
    assert set(record.notes) == {
        reason("SAMPLER_CHOSE", file=file, evaluations=made, steps=STEPS),
        reason("SAMPLER_HEADS_IDLE", file=file, heads="cache, sparse", why=why),
        reason("LITTLE_SHORT", steps=STEPS, full=4, evaluations=7),
    }
    assert record.totals["skipped"] > 0 and record.totals["reused"] == 0
    assert all("." in record.strip(i) for i in range(batch))
    plain = draw(tiny_sd3, jumper(policy), cfg=2.0, batch=batch)
    assert not torch.equal(plain, latent)  # there the cache head acts


def controlled(start, end, before=None):
    """What a ControlNet node puts into a conditioning, with a range of the sampling."""
    control = comfy.controlnet.ControlBase()
    control.set_cond_hint(torch.zeros(1, 3, 8, 8), 1.0, (start, end))
    return {"control": control.set_previous_controlnet(before), "control_apply_to_uncond": False}


def hooked(keyframes):
    """A conditioning's hook with a number of keyframes."""
    group = comfy.hooks.create_hook_lora({}, 1.0, 0.0)
    frames = comfy.hooks.HookKeyframeGroup()
    for n in range(keyframes):
        frames.add(comfy.hooks.HookKeyframe(1.0, n / keyframes))
    group.set_keyframes_on_hooks(frames)
    return {"hooks": group}


class TestErrors:
    """What cannot be sampled so is named before anything is computed."""

    def test_a_schedule_on_the_model_is_refused(self, load_policy, jumper, tiny_sd3, comfy_host):
        fast = comfy_host.run_node("RAPID_Accelerate", model=tiny_sd3, speedup=2.0)[0]
        with pytest.raises(
            ValueError, match="RAPID Accelerate is on this model, and jumps.safetensors would be"
        ):
            draw(fast, jumper(load_policy("sd3", tiny_sd3, step=[0.0, 0.0])))

    def test_easycache_is_refused(self, load_policy, jumper, tiny_sd3, comfy_host):
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
                draw(model, jumper(load_policy("sd3", tiny_sd3, step=[0.0, 0.0])))

    def test_another_model_is_refused(self, load_policy, jumper, tiny_sd3, tiny_flux):
        sampler = jumper(load_policy("sd3", tiny_sd3, step=[0.0, 0.0]))
        with pytest.raises(
            ValueError, match="architecture = 'sd3', trained on tiny; this model is flux"
        ):
            draw(tiny_flux, sampler)

    def test_rising_sigmas_are_refused(self, load_policy, jumper, tiny_sd3):
        sampler = jumper(load_policy("sd3", tiny_sd3, step=[0.0, 0.0]))
        with pytest.raises(ValueError, match="sigmas rise from 0 to 1; accepted are falling ones"):
            draw(tiny_sd3, sampler, sigmas_of(tiny_sd3).flip(0))

    @pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
    @pytest.mark.parametrize("place", [0, -1])
    def test_sigmas_that_are_no_numbers_are_refused(
        self, load_policy, jumper, tiny_sd3, wrong, place
    ):
        """An image at NaN never arrives, and the run would have no end."""
        sampler = jumper(load_policy("sd3", tiny_sd3, step=[0.0, 0.0]))
        sigmas = sigmas_of(tiny_sd3).clone()
        sigmas[place] = wrong
        with pytest.raises(ValueError, match="accepted are finite numbers"):
            draw(tiny_sd3, sampler, sigmas)

    def test_a_policy_without_a_step_head_is_refused_by_the_node(
        self, load_policy, jumper, tiny_sd3
    ):
        with pytest.raises(
            ValueError,
            match="jumps.safetensors: heads = cache: has no step head .* RAPID Accelerate",
        ):
            jumper(load_policy("sd3", tiny_sd3, cache=[0.0, 0.0]))

    @pytest.mark.parametrize("speedup", [0.5, 7.0, float("nan"), "fast"])
    def test_a_speed_that_is_not_offered_is_refused(self, load_policy, jumper, tiny_sd3, speedup):
        with pytest.raises(
            ValueError, match="RAPID Policy Sampler: speedup = .* accepted is a number from 1 to 6"
        ):
            jumper(load_policy("sd3", tiny_sd3, step=[0.0, 0.0]), speedup=speedup)

    @pytest.mark.parametrize(
        "extra, what",
        [
            (lambda: {"start_percent": 0.5}, "a conditioning has a start or an end"),
            (lambda: {"end_percent": 0.5}, "a conditioning has a start or an end"),
            (lambda: controlled(0.2, 1.0), "a conditioning has a start or an end"),
            (lambda: controlled(0.0, 0.8), "a conditioning has a start or an end"),
            (
                lambda: controlled(0.0, 1.0, controlled(0.0, 0.8)["control"]),
                "a conditioning has a start or an end",
            ),
            (lambda: hooked(2), "a hook has keyframes"),
        ],
    )
    def test_a_batch_whose_conditionings_ask_for_one_sigma_is_refused(
        self, load_policy, jumper, tiny_sd3, extra, what
    ):
        sampler = jumper(load_policy("sd3", tiny_sd3, step=[0.0, 0.0]))
        with pytest.raises(ValueError, match=f"{what}.*Set the batch size to 1"):
            draw(tiny_sd3, sampler, batch=2, extra=extra())

    @pytest.mark.parametrize(
        "extra, batch",
        [
            (lambda: {"start_percent": 0.5}, 1),
            (lambda: {"end_percent": 0.5}, 1),
            (lambda: hooked(2), 1),
            (lambda: hooked(1), 2),
        ],
    )
    def test_one_image_or_a_conditioning_of_all_sigmas_is_not_refused(
        self, load_policy, jumper, tiny_sd3, extra, batch
    ):
        sampler = jumper(load_policy("sd3", tiny_sd3, step=[0.0, 0.0]))
        assert torch.isfinite(draw(tiny_sd3, sampler, batch=batch, extra=extra())).all()


def test_it_is_a_sampler_for_both_custom_sampler_nodes(
    load_policy, jumper, tiny_sd3, comfy_host, report, reason
):
    node = comfy_host.nodes.NODE_CLASS_MAPPINGS["RAPID_PolicySampler"]
    assert list(node.INPUT_TYPES()["required"]) == ["policy"]
    assert list(node.RETURN_TYPES) == ["SAMPLER"]
    comfy_host.load_core_nodes("nodes_custom_sampler.py")
    sampler = jumper(load_policy("sd3", tiny_sd3, wild=True, **WILD))
    sigmas = sigmas_of(tiny_sd3)
    run = comfy_host.run_node
    latent = {"samples": empty_latent(2)}
    positive = make_conditioning(0)
    negative = make_conditioning(1)
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
    assert torch.equal(simple[1]["samples"], advanced[1]["samples"])
    assert simple[1]["samples"].shape == (2, 16, 16, 16)
    assert torch.equal(simple[0]["samples"], draw(tiny_sd3, sampler, sigmas, 2.0, batch=2))
    _, text, *_ = run("RAPID_Report", model=tiny_sd3, latent=simple[0])
    made = [len(sigmas_computed(report(tiny_sd3), i)) for i in range(2)]
    assert f"{made[0]}, {made[1]} evaluations instead of {STEPS}" in text
    assert "rapid_policy on sd3, 2 images, finished" in text
