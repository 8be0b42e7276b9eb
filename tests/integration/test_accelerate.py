"""RAPID Accelerate in the real ComfyUI: the budget, the predictions, any sampler."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rapid_core.quadrature.lagrange import adams_bashforth
from rapid_core.quadrature.multistep import (
    ROUGH,
    SHARE_ALWAYS,
    SHARE_AT_FIRST,
    SHARE_MEASURED,
)
from rapid_core.quadrature.sigmas import place_in_schedule
from rapid_core.quadrature.spacing import best_spaced
from rapid_core.types import Aim
from rapid_testing.runs import bending, products_of
from rapid_testing.safety import even_so, with_settings
from rapid_testing.sampling import empty_latent, make_conditioning, sample

STEPS = 12


def strip(record, image=0):
    return record.strip(image)


def notes_of(record):
    """Code and parameters of what a record says beside its figures."""
    return [(note.code, note.params) for note in record.notes]


@pytest.mark.parametrize("speedup, computed", [(2.0, 6), (2.5, 4), (3.0, 4), (6.0, 2), (1.1, 10)])
def test_the_budget_is_a_ceiling(accelerate, record_of, tiny_model, speedup, computed):
    patched = accelerate(tiny_model, speedup)
    result = sample(patched, steps=STEPS, cfg=2.0)
    record = record_of(patched)
    assert torch.isfinite(result).all()
    assert record.totals["computed"] == computed and record.totals["speedup_theoretical"] >= speedup
    assert strip(record)[0] == "#" and (computed <= 3 or strip(record)[-1] == "#")


def test_speed_one_leaves_the_model_alone(accelerate, tiny_model):
    assert accelerate(tiny_model, 1.0) is tiny_model


def test_mode_off_leaves_the_model_alone(accelerate, tiny_model):
    assert accelerate(tiny_model, 3.0, mode="off") is tiny_model
    assert accelerate(tiny_model, 3.0, mode="off", policy=object()) is tiny_model


@pytest.fixture
def policy_of(pack_module):
    """The policy that a node attached last."""
    return lambda model: pack_module("rapid_core.comfy.chain").chain_of(model).policies[-1]


def test_the_dial_is_a_speedup_or_a_closeness(accelerate, policy_of, tiny_flux):
    policy = policy_of(accelerate(tiny_flux, 2.5))
    assert (policy.speedup, policy.closeness) == (2.5, None)
    assert (policy.aim.value, policy.start_percent, policy.end_percent) == (
        "full picture",
        0.0,
        1.0,
    )
    assert policy.safe and policy.schedule is None
    for name, decibels in {"faithful": 45, "balanced": 40, "draft": 34, "decibels": 52.5}.items():
        given = dict(mode="quality", closeness=name, decibels=52.5)
        policy = policy_of(accelerate(tiny_flux, 1.0, **given))  # speedup has no say
        assert policy.closeness == decibels


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("speedup", 0.9, "a number from 1 to 6"),
        ("speedup", math.nan, "a number from 1 to 6"),
        ("speedup", "fast", "a number from 1 to 6"),
        ("decibels", 19.0, "a number from 20 to 80"),
        ("decibels", 81.0, "a number from 20 to 80"),
        ("mode", "fast", "one of speed, quality, off"),
        ("closeness", "near", "one of faithful, balanced, draft, decibels"),
        ("aim", "mine", "one of full picture, best picture"),
    ],
)
def test_what_is_not_accepted_is_refused_with_what_is(accelerate, tiny_flux, name, value, accepted):
    said = f"RAPID Accelerate: {name} = {value!r} was given; accepted is {accepted}. The default is"
    with pytest.raises(ValueError) as error:
        accelerate(tiny_flux, **{name: value})
    assert str(error.value).startswith(said)


@pytest.mark.parametrize("aim", Aim)
def test_under_euler_a_run_is_predictor_and_corrector(
    accelerate, tiny_sd3, record_of, pack_module, aim
):
    """Against the same run written down by hand: predictions by the line through the latest two
    computed derivatives, of whose slope as much is taken as each image's run says; where a gap has
    ended, it is estimated again by the parabola through the latest three."""
    import comfy.sample
    import comfy.samplers

    aims = pack_module("rapid_core.types").Aim
    patched = with_settings(accelerate(tiny_sd3, 2.0), aim=aims(aim.value))
    latent = empty_latent(batch=2)
    found = sample(patched, steps=STEPS, cfg=2.0, latent=latent, sampler="euler")
    sigmas = comfy.samplers.calculate_sigmas(
        tiny_sd3.get_model_object("model_sampling"), "simple", STEPS
    )
    runs = {i for i, on in enumerate(best_spaced(6, sigmas.tolist())) if on}
    assert {i for i, mark in enumerate(strip(record_of(patched))) if mark == "#"} == runs

    def polynomial(known, start, stop):
        """Through these points: its value at `start`, or its mean over start .. stop."""
        ends = None if aim is Aim.FULL_PICTURE else stop
        weights = adams_bashforth([s for s, _ in known], start, ends)
        return sum(w * d for w, (_, d) in zip(weights, known, strict=True))

    def by_hand(model, x, sigmas, extra_args=None, callback=None, disable=None):
        known, share = [], None
        gap, moved = [], torch.zeros_like(x)
        for i in range(len(sigmas) - 1):
            s, e = float(sigmas[i]), float(sigmas[i + 1])
            shift = torch.zeros_like(x)
            if i in runs:
                d = (x - model(x, sigmas[i] * x.new_ones(x.shape[0]), **extra_args)) / s
                if len(known) > 1:
                    (a, before), (b, latest) = known[-2:]
                    line = ((latest - before) * (s - b) / (b - a)).flatten(1)
                    skill = (line * (d - latest).flatten(1)).sum(1) / line.square().sum(1)
                    share = (SHARE_ALWAYS + SHARE_MEASURED * skill).clamp(0, 1)
                elif known:
                    change = (d - known[0][1]).flatten(1).abs().mean(1)
                    rough = change / d.flatten(1).abs().mean(1) > ROUGH
                    share = torch.where(rough, 0.0, SHARE_AT_FIRST)
                known.append((s, d))
                if gap and len(known) > 1:
                    shift = sum((q - p) * polynomial(known[-3:], p, q) for p, q in gap) - moved
                gap, moved = [], torch.zeros_like(x)
            if i not in runs or aim is Aim.BEST_PICTURE:
                latest = known[-1][1]
                d = latest
                if len(known) > 1:
                    d = latest + share.view(-1, 1, 1, 1) * (polynomial(known[-2:], s, e) - latest)
                gap.append((s, e))
                moved = moved + (e - s) * d
            x = x + (e - s) * d + shift
        return x

    wanted = comfy.sample.sample_custom(
        tiny_sd3,
        comfy.sample.prepare_noise(latent, 0),
        2.0,
        comfy.samplers.KSAMPLER(by_hand),
        sigmas,
        make_conditioning(0),
        make_conditioning(1),
        latent,
        disable_pbar=True,
        seed=0,
    )
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


SAMPLERS = [
    "euler_ancestral",
    "heun",
    "dpmpp_2m",
    "dpmpp_3m_sde",
    "lcm",
    "dpm_adaptive",
    "res_multistep",
]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_it_goes_with_other_samplers(accelerate, record_of, tiny_sd3, sampler):
    patched = even_so(accelerate(tiny_sd3, 2.0))
    result = sample(patched, steps=STEPS, cfg=2.0, sampler=sampler)
    record = record_of(patched)
    assert torch.isfinite(result).all()
    if sampler != "dpm_adaptive":  # chooses its own steps: nothing is known of them in advance
        totals = record.totals
        assert totals["skipped"] > 0 and totals["flops"] < totals["full_flops"]


def test_image_to_image_and_few_steps(accelerate, record_of, tiny_sd3):
    patched = even_so(accelerate(tiny_sd3, 2.0))
    sample(patched, steps=1, cfg=2.0)
    assert strip(record_of(patched)) == "#"
    sample(patched, steps=3, cfg=2.0)
    assert strip(record_of(patched)) == "#.."
    assert notes_of(record_of(patched)) == [("one_evaluation", {"steps": 3, "speedup": 2.0})]
    sample(patched, steps=STEPS, cfg=2.0, denoise=0.5, latent=torch.randn(1, 16, 16, 16))
    assert (
        strip(record_of(patched)).count("#") == STEPS // 2
        and len(strip(record_of(patched))) == STEPS
    )


def test_on_a_model_of_no_known_family_whole_evaluations_are_skipped_all_the_same(
    accelerate, record_of, tiny_sd3, monkeypatch, pack_module
):
    wanted = sample(accelerate(tiny_sd3, 2.0), steps=STEPS, cfg=2.0)
    for name in ("rapid_core.comfy.chain", "rapid_core.comfy.facts"):
        monkeypatch.setattr(pack_module(name), "describe", lambda model: None)
    patched = accelerate(tiny_sd3, 2.0)
    assert torch.equal(sample(patched, steps=STEPS, cfg=2.0), wanted)
    totals = record_of(patched).totals
    assert totals["computed"] == STEPS // 2 and totals["speedup_theoretical"] == 2


def test_together_with_cache_reuse_the_least_is_computed(
    accelerate, record_of, tiny_sd3, comfy_host
):
    both = comfy_host.run_node(
        "RAPID_CacheReuse",
        model=accelerate(tiny_sd3, 2.0),
        reuse_threshold=9.0,
        start_percent=0.0,
        end_percent=1.0,
        max_consecutive=3,
        forecast_order=1,
        level="skip",
        guard=0.0,
    )[0]
    assert torch.isfinite(sample(both, steps=STEPS, cfg=2.0)).all()
    assert record_of(both).totals["computed"] < 6


@pytest.mark.parametrize("speedup", [0.5, 7.0, float("nan"), "fast"])
def test_a_speed_that_is_not_offered_is_refused(accelerate, tiny_model, speedup):
    with pytest.raises(
        ValueError, match="RAPID Accelerate: speedup = .* accepted is a number from 1 to 6"
    ):
        accelerate(tiny_model, speedup)


@pytest.fixture
def policy_folder(pack):
    import folder_paths

    folder = folder_paths.get_folder_paths("rapid_policies")[0]
    return Path(folder)


@pytest.fixture
def saved(pack_module, policy_folder):
    """saved(kind, tensors, **metadata): name of a policy file where the host looks for them."""
    write, written = pack_module("rapid_core.policy_file.format").write, []

    def save(kind, tensors, name="test.safetensors", **more):
        metadata = dict(
            architecture="sd3",
            base_model="tiny",
            budgets=[2.0],
            reward="psnr",
            licence="Apache-2.0",
            training_command="-",
        )
        written.append(write(policy_folder / name, kind, {**metadata, **more}, tensors).path)
        return name

    yield save
    for path in written:
        path.unlink(missing_ok=True)


def load(comfy_host, name):
    return comfy_host.run_node("RAPID_LoadPolicy", policy=name)[0]


@pytest.fixture
def schedule_file(comfy_host, pack_module, saved):
    """A loaded policy with a schedule of four steps, for SD3."""
    schedule = pack_module("rapid_core.techniques.step_skip.schedule").Schedule
    found = schedule((True, False, True, False), (1.0, 0.8, 0.5, 0.2, 0.0))
    tensors = pack_module("rapid_core.policy_file.schedules").schedule_tensors([found])
    return load(comfy_host, saved("schedule", tensors))


def test_the_other_settings_are_the_policys_with_and_without_a_file(
    comfy_host, accelerate, policy_of, tiny_sd3, saved, schedule_file
):
    given = dict(aim="best picture", start_percent=0.1, end_percent=0.8, even_so=True)
    for policy in (None, schedule_file):
        found = policy_of(accelerate(tiny_sd3, 2.0, policy=policy, **given))
        assert found.aim.value == "best picture" and not found.safe
        assert (found.start_percent, found.end_percent) == (0.1, 0.8)
        assert bool(found.schedule) is (policy is not None)
    thresholds = load(comfy_host, saved("threshold", {"thresholds": torch.tensor([0.7])}))
    found = policy_of(accelerate(tiny_sd3, 2.0, policy=thresholds, **given))
    assert found.percents == (0.1, 0.8) and not found.safe


def test_a_policy_file_is_refused_in_mode_quality(accelerate, tiny_sd3, schedule_file):
    said = "mode = 'quality' was given with a policy; .* Set mode to speed, or connect nothing"
    with pytest.raises(ValueError, match=said):
        accelerate(tiny_sd3, mode="quality", policy=schedule_file)


def test_a_threshold_policy_samples_as_cache_reuse_does(
    comfy_host, pack, pack_module, saved, tiny_sd3
):
    """guard 0: on random weights every prediction is bad, and with the guard on nothing would be
    skipped."""
    policy = load(comfy_host, saved("threshold", {"thresholds": torch.tensor([0.7])}))
    by_node = comfy_host.run_node("RAPID_Accelerate", model=tiny_sd3, speedup=2.0, policy=policy)[0]
    unguarded = replace(
        pack_module("rapid_core.policy_file.policies").policy_of(policy, 2.0), guard=0.0
    )
    settings = dict(
        model=tiny_sd3,
        reuse_threshold=0.7,
        start_percent=0.0,
        end_percent=1.0,
        max_consecutive=3,
        forecast_order=1,
        level="skip",
    )
    by_hand = [
        comfy_host.run_node("RAPID_CacheReuse", **settings, guard=guard)[0] for guard in (0.5, 0.0)
    ]
    by_policy = [by_node, pack_module("rapid_core.comfy.chain").attach(tiny_sd3, unguarded)]
    wanted, found = (
        [sample(m, steps=STEPS, cfg=2.0) for m in models] for models in (by_hand, by_policy)
    )
    assert all(torch.allclose(*pair) for pair in zip(found, wanted, strict=True))
    assert not torch.allclose(found[1], sample(tiny_sd3, steps=STEPS, cfg=2.0))


def test_a_schedule_policy_computes_its_steps(
    comfy_host, pack, pack_module, saved, tiny_sd3, record_of
):
    import comfy.samplers

    sigmas = comfy.samplers.calculate_sigmas(
        tiny_sd3.get_model_object("model_sampling"), "simple", STEPS
    ).tolist()
    schedule = pack_module("rapid_core.techniques.step_skip.schedule")
    files = pack_module("rapid_core.policy_file.schedules")
    computed = tuple(i in (0, 1, 3, 6, 8, 11) for i in range(STEPS))
    gram = pack_module("rapid_core.quadrature.gram").Gram.of(products_of(bending(sigmas, 4)), STEPS)
    searched = schedule.Schedule(computed, tuple(sigmas), gram)
    name = saved("schedule", files.schedule_tensors([searched]))
    patched = comfy_host.run_node(
        "RAPID_Accelerate", model=tiny_sd3, speedup=2.0, policy=load(comfy_host, name)
    )[0]
    sample(patched, steps=STEPS, cfg=2.0)
    marks = "".join("#" if step else "." for step in computed)
    given = ("policy_given", {"file": name})
    assert strip(record_of(patched)) == marks and notes_of(record_of(patched)) == [given]
    sample(patched, steps=STEPS, cfg=2.0, sampler="heun")
    assert notes_of(record_of(patched)) == [given, ("schedule_moved", {"file": name})]


def test_policies_are_listed_and_read_again_when_they_change(comfy_host, pack, saved, tiny_flux):
    name = saved("threshold", {"thresholds": torch.tensor([0.7])})
    node = comfy_host.nodes.NODE_CLASS_MAPPINGS["RAPID_LoadPolicy"]
    options = node.define_schema().inputs[0].options
    assert name == options[0] and options[-1].startswith(
        "demo-"
    )  # one's own before those of the demo models
    before = node.fingerprint_inputs(policy=name)
    policy = load(comfy_host, saved("threshold", {"thresholds": torch.tensor([0.2])}))
    assert node.fingerprint_inputs(policy=name) != before
    assert policy.tensors["thresholds"].item() == pytest.approx(0.2)
    with pytest.raises(
        ValueError, match="architecture = 'sd3', trained on tiny; this model is flux"
    ):
        comfy_host.run_node("RAPID_Accelerate", model=tiny_flux, speedup=2.0, policy=policy)
    with pytest.raises(ValueError, match="policy = 'none.safetensors' was given; there is"):
        load(comfy_host, "none.safetensors")
    with pytest.raises(ValueError, match="policy = 'a.safetensors' was given; accepted is what"):
        comfy_host.run_node("RAPID_Accelerate", model=tiny_flux, policy="a.safetensors")


@pytest.mark.parametrize(
    "kind, tensors, said",
    [
        (
            "threshold",
            {"thresholds": torch.tensor([math.nan])},
            "thresholds holds NaN or infinite values",
        ),
        (
            "threshold",
            {"thresholds": torch.tensor([0.1, 0.2])},
            r"thresholds has shape \(2,\); accepted is 1",
        ),
        (
            "schedule",
            {"sigmas": torch.tensor([1.0, 0.5, 0.0])},
            "plan.0.computed is missing from the tensors",
        ),
        ("heads", {}, "heads is missing from the metadata"),
    ],
)
def test_a_file_with_anything_wrong_is_refused_when_it_is_loaded(
    comfy_host, pack, saved, kind, tensors, said
):
    with pytest.raises(ValueError, match=f"policy test.safetensors: {said}"):
        load(comfy_host, saved(kind, tensors))


@pytest.fixture
def heads_file(pack_module, saved):
    """heads_file(kind, hidden, **logits): name of a policy file whose heads always answer the same,
    or, wild, what depends on what they see; all three, unless logits name some."""
    files = pack_module("rapid_core.policy_file.heads")
    module = pack_module("rapid_core.techniques.heads.rapid3")

    def save(kind, hidden, channels=16, sparse_backend="auto", wild=False, **logits):
        torch.manual_seed(5)
        heads = module.Heads(channels, hidden, tuple(logits) or module.HEADS, width=16)
        for name, values in logits.items():
            heads.heads[name].fc2.weight.data.mul_(3000.0 if wild else 0.0)
            heads.heads[name].fc2.bias.data.copy_(torch.tensor(values))
        more = files.head_metadata(heads, 0, (0.5, 0.25, 0.125), sparse_backend)
        return saved("heads", files.head_tensors(heads), **{**more, "architecture": kind})

    return save


@pytest.mark.parametrize("kind", ["flux", "sd3"])
@pytest.mark.parametrize("batch, cfg", [(1, 1.0), (2, 3.0)])
def test_heads_decide_in_the_host(
    comfy_host, pack, heads_file, load_tiny, record_of, kind, batch, cfg
):
    model = load_tiny(kind)
    near_full = dict(step=[2.0, 0.0], cache=[2.0, 0.0], sparse=[2.0, 0.0, 0.0, 0.0])
    name, spent = heads_file(kind, model.model.diffusion_model.hidden_size, **near_full), {}
    policy = load(comfy_host, name)
    for speedup in (1.0 + 1e-6, 4.0):  # what they want, and what they are allowed
        patched = comfy_host.run_node(
            "RAPID_Accelerate", model=model, speedup=speedup, policy=policy
        )[0]
        result = sample(
            patched, steps=STEPS, cfg=cfg, latent=empty_latent(batch=batch, height=32, width=32)
        )
        record = record_of(patched)
        assert torch.isfinite(result).all() and record.policies[0]["technique"] == "rapid3"
        spent[speedup] = [
            sum(e.modes[image] == "run" for e in record.evaluations) for image in range(batch)
        ]
    assert max(spent[4.0]) <= STEPS // 4 < min(spent[1.0 + 1e-6])


def test_heads_decide_for_an_image_in_a_batch_as_they_do_for_it_alone(
    comfy_host, pack, heads_file, load_tiny, record_of
):
    """Two noises; what the heads see of an image is its own."""
    model = load_tiny("flux")
    name = heads_file("flux", model.model.diffusion_model.hidden_size, wild=True, step=[-3.0, 0.0])
    patched = comfy_host.run_node(
        "RAPID_Accelerate", model=model, speedup=1.1, policy=load(comfy_host, name)
    )[0]
    slope = torch.linspace(-2, 2, 32).expand(16, 32, 32)
    latent = torch.stack((slope.mT, slope))
    both = sample(patched, steps=STEPS, denoise=0.8, latent=latent)
    modes = [[e.modes[image] for e in record_of(patched).evaluations] for image in range(2)]
    assert modes[0] != modes[1] and all("skip" in own for own in modes)
    for image in range(2):
        noise = {"latent": latent[image : image + 1], "batch_index": [image]}
        alone = sample(patched, steps=STEPS, denoise=0.8, **noise)
        assert [e.modes[0] for e in record_of(patched).evaluations] == modes[image]
        assert torch.allclose(alone[0], both[image], atol=2e-3)


@pytest.mark.parametrize("backend, thin", [("gather", True), ("auto", False)])
def test_a_sparse_head_acts_with_the_backend_of_its_file(
    comfy_host, pack, heads_file, load_tiny, record_of, backend, thin
):
    """256 tokens: too few for any backend that was measured faster than dense attention."""
    model = load_tiny("flux")
    hidden, logits = model.model.diffusion_model.hidden_size, [0.0, 0.0, 9.0, 0.0]
    name = heads_file("flux", hidden, sparse_backend=backend, sparse=logits)
    patched = comfy_host.run_node(
        "RAPID_Accelerate", model=model, speedup=1.1, policy=load(comfy_host, name)
    )[0]
    found = sample(patched, steps=STEPS, latent=empty_latent(height=32, width=32))
    evaluations = record_of(patched).evaluations
    assert any(e.cost[0] < e.full_cost[0] for e in evaluations if e.modes[0] == "run") == thin
    reasons = {reason for e in evaluations for reason in e.reasons}
    assert {reason.code for reason in reasons} == (set() if thin else {"attention_dense"})
    assert all(reason.params["why"].code == "auto_is_dense" for reason in reasons)
    assert torch.isfinite(found).all()


def test_with_recompute_everywhere_and_jumps_of_one_step_heads_are_stock_euler(
    comfy_host, pack, pack_module, heads_file, tiny_sd3, record_of
):
    hidden = tiny_sd3.model.diffusion_model.hidden_size
    name = heads_file(
        "sd3", hidden, step=[9.0, -9.0], cache=[9.0, -9.0], sparse=[9.0, 0.0, 0.0, 0.0]
    )
    policy = pack_module("rapid_core.policy_file.policies").policy_of(load(comfy_host, name), 1.0)
    patched = pack_module("rapid_core.comfy.chain").attach(tiny_sd3, policy)
    found, wanted = (sample(m, steps=STEPS, cfg=2.0) for m in (patched, tiny_sd3))
    assert strip(record_of(patched)) == "#" * STEPS
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2", "dpmpp_2m"])
@pytest.mark.parametrize("scheduler, speedup", [("simple", 1.5), ("simple", 3.0), ("beta", 2.0)])
def test_heads_that_say_nothing_are_their_schedule_with_any_sampler(
    comfy_host, pack, pack_module, saved, tiny_sd3, record_of, sampler, scheduler, speedup
):
    import comfy.samplers

    sigmas = comfy.samplers.calculate_sigmas(
        tiny_sd3.get_model_object("model_sampling"), scheduler, STEPS
    ).tolist()
    files = pack_module("rapid_core.policy_file.heads")
    schedule_tensors = pack_module("rapid_core.policy_file.schedules").schedule_tensors
    module = pack_module("rapid_core.techniques.heads.rapid3")
    numbers = pack_module("rapid_core.techniques.heads.rapid_plus").NUMBERS
    schedule = pack_module("rapid_core.techniques.step_skip.schedule")
    computed = tuple(i in (0, 1, 3, 6, 8, 11) for i in range(STEPS))
    gram = pack_module("rapid_core.quadrature.gram").Gram.of(products_of(bending(sigmas, 4)), STEPS)
    schedules = schedule_tensors([schedule.Schedule(computed, tuple(sigmas), gram)])
    hidden = tiny_sd3.model.diffusion_model.hidden_size
    heads = module.Heads(16, hidden, ("pace",), numbers, 16)
    heads.heads["pace"].fc2.weight.data.zero_()
    more = {**files.head_metadata(heads, 1, (0.5, 0.25, 0.125)), "structure": "rapid+"}
    drawn, marks = [], []
    for kind, tensors, said in (
        ("schedule", schedules, {}),
        ("heads", {**files.head_tensors(heads), **schedules}, more),
    ):
        policy = load(comfy_host, saved(kind, tensors, f"{kind}.safetensors", **said))
        patched = comfy_host.run_node(
            "RAPID_Accelerate", model=tiny_sd3, speedup=speedup, policy=policy
        )[0]
        drawn.append(sample(patched, steps=STEPS, cfg=2.0, sampler=sampler, scheduler=scheduler))
        marks.append(strip(record_of(patched)))
    assert marks[0] == marks[1] and "." in marks[0] and torch.equal(*drawn)


def test_two_schedules_on_one_model_are_not_both_followed(
    accelerate, comfy_host, pack, heads_file, tiny_sd3, record_of
):
    name = heads_file("sd3", tiny_sd3.model.diffusion_model.hidden_size)
    patched = comfy_host.run_node(
        "RAPID_Accelerate",
        model=accelerate(tiny_sd3, 2.0),
        speedup=2.0,
        policy=load(comfy_host, name),
    )[0]
    sample(patched, steps=STEPS, cfg=2.0)
    record = record_of(patched)
    assert [p["technique"] for p in record.policies] == ["rapid3"]
    assert ("two_schedules", {"first": "schedule", "second": "rapid3"}) in notes_of(record)


def test_thresholds_out_of_a_file_are_one_schedule_among_others_and_cache_reuse_is_none(
    accelerate, comfy_host, pack, pack_module, saved, tiny_sd3
):
    policy = load(comfy_host, saved("threshold", {"thresholds": torch.tensor([0.7])}))

    def thresholds(model):
        return comfy_host.run_node("RAPID_Accelerate", model=model, speedup=2.0, policy=policy)[0]

    reuse = comfy_host.run_node(
        "RAPID_CacheReuse",
        model=tiny_sd3,
        reuse_threshold=0.7,
        start_percent=0.0,
        end_percent=1.0,
        max_consecutive=3,
        forecast_order=1,
        level="skip",
        guard=0.5,
    )[0]
    chain_of = pack_module("rapid_core.comfy.chain").chain_of
    for patched, techniques, replaced in (
        (thresholds(accelerate(tiny_sd3, 2.0)), ["cache_reuse"], [("schedule", "cache_reuse")]),
        (accelerate(thresholds(tiny_sd3), 2.0), ["schedule"], [("cache_reuse", "schedule")]),
        (accelerate(reuse, 2.0), ["cache_reuse", "schedule"], []),
    ):
        chain = chain_of(patched)
        assert [p.technique for p in chain.policies] == techniques
        notes = [note for note in chain.notes if note.code != "policy_given"]
        assert {note.code for note in notes} <= {"two_schedules"}
        assert [(n.params["first"], n.params["second"]) for n in notes] == replaced


def test_heads_see_the_models_pooled_vector(
    comfy_host, pack, heads_file, pack_module, tiny_sd3, monkeypatch
):
    """Another prompt gives another vector."""
    hidden, seen = tiny_sd3.model.diffusion_model.hidden_size, []
    module = pack_module("rapid_core.techniques.heads.rapid3")
    real = module.Rapid3Actor._pooled

    def pooled(self, look, hidden):
        seen.append(look.pooled)
        return real(self, look, hidden)

    monkeypatch.setattr(module.Rapid3Actor, "_pooled", pooled)
    policy = load(comfy_host, heads_file("sd3", hidden))
    patched = comfy_host.run_node("RAPID_Accelerate", model=tiny_sd3, speedup=2.0, policy=policy)[0]
    found = []
    for prompt in (0, 5, 0):
        seen.clear()
        sample(patched, steps=4, cfg=2.0, positive=make_conditioning(prompt))
        assert seen and all(p is not None and p.shape == (hidden,) for p in seen)
        found.append(seen[0])
    assert torch.equal(found[0], found[2]) and not torch.allclose(found[0], found[1])


def region_node(comfy_host, model, **changes):
    settings = dict(
        keep_ratio=0.5,
        preset="custom",
        warm_up=0.2,
        tail=0.1,
        refresh_interval=3,
        drift_threshold=0.0,
        metric="std",
        direction="low",
        starvation=0.3,
        inactive="predict",
        slope=0.0,
    )
    return comfy_host.run_node("RAPID_RegionAdaptive", model=model, **{**settings, **changes})[0]


@pytest.mark.parametrize(
    "insisted, unpaid",
    [(dict(warm_up=0.0, tail=0.0, refresh_interval=0), 0), (dict(warm_up=0.2, tail=0.1), 1)],
)
def test_the_budget_holds_beside_region_adaptive(
    accelerate, record_of, tiny_sd3, comfy_host, insisted, unpaid
):
    """After token subsets parts of the history have sigmas of their own; what is to be skipped is
    skipped all the same. unpaid: evaluations that Region Adaptive insists on so late (its tail) that
    none is left to skip instead."""
    both = region_node(comfy_host, accelerate(tiny_sd3, 2.0), **insisted)
    sample(both, steps=STEPS, cfg=2.0, latent=empty_latent(height=32, width=32))
    marks = strip(record_of(both))
    assert len(marks) == STEPS and "+" in marks
    assert marks.count(".") == STEPS // 2 - unpaid


@pytest.mark.parametrize("sampler", ["heun", "dpm_2"])
def test_heads_count_steps_whatever_a_sampler_evaluates_in_them(
    comfy_host, pack, pack_module, heads_file, tiny_sd3, record_of, sampler
):
    hidden = tiny_sd3.model.diffusion_model.hidden_size
    policy = load(comfy_host, heads_file("sd3", hidden, step=[9.0, -9.0]))
    patched = comfy_host.run_node("RAPID_Accelerate", model=tiny_sd3, speedup=2.0, policy=policy)[0]
    sample(patched, steps=STEPS, cfg=2.0, sampler=sampler)
    record = record_of(patched)
    ran = {
        place_in_schedule(e.sigma, record.sigmas) for e in record.evaluations if e.modes[0] == "run"
    }
    assert len(ran) == STEPS // 2  # the first half, since these heads never jump


def test_sparse_attention_keeps_its_settings_beside_heads(
    comfy_host, pack, heads_file, load_tiny, record_of
):
    model = load_tiny("sd3")
    thin = comfy_host.run_node(
        "RAPID_SparseAttention",
        model=model,
        density=0.25,
        start_percent=0.0,
        end_percent=1.0,
        dense_first=0,
        dense_last=0,
        backend="gather",
        left_out="predict",
        refresh_interval=2,
        memory_limit=0.0,
        tile="16",
    )[0]
    policy = load(
        comfy_host,
        heads_file("sd3", model.model.diffusion_model.hidden_size, sparse=[0.0, 0.0, 9.0, 0.0]),
    )
    both = comfy_host.run_node("RAPID_Accelerate", model=thin, speedup=1.5, policy=policy)[0]
    sample(both, steps=STEPS, cfg=2.0, latent=empty_latent(height=32, width=32))
    record = record_of(both)
    assert "residual_memory" in [code for code, _ in notes_of(record)]
    measuring = [e for e in record.evaluations if e.measured_density and e.measured_density[0]]
    assert all(e.cost[0] >= e.full_cost[0] for e in measuring)


@pytest.mark.parametrize(
    "field, value, said", [("channels", 4, "channels = 4"), ("hidden", 7, "hidden = 7")]
)
def test_heads_of_another_size_are_refused_when_the_node_runs(
    comfy_host, pack, heads_file, tiny_sd3, field, value, said
):
    sizes = {"hidden": tiny_sd3.model.diffusion_model.hidden_size, "channels": 16, field: value}
    policy = load(comfy_host, heads_file("sd3", sizes["hidden"], sizes["channels"]))
    with pytest.raises(ValueError, match=f"{said}, trained on tiny; this model has"):
        comfy_host.run_node("RAPID_Accelerate", model=tiny_sd3, speedup=2.0, policy=policy)


@pytest.mark.parametrize(
    ("kind", "first"), [("flux", "compiled first"), ("lumina2", "patched first")]
)
def test_a_compiled_model_is_skipped_as_it_was(kind, first, family, accelerate, record_of):
    """A decision stands outside of the compiled graph: the model is called or it is not."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model, latent = family(kind)
    settings = {"steps": STEPS, "cfg": 2.0, "latent": torch.zeros(2, *latent)}
    plain = accelerate(model, 2.0)
    expected = sample(plain, **settings)
    compiled = model.clone()
    if first == "compiled first":
        set_torch_compile_wrapper(compiled, backend="aot_eager")
        compiled = accelerate(compiled, 2.0)
    else:
        compiled = accelerate(compiled, 2.0)
        set_torch_compile_wrapper(compiled, backend="aot_eager")
    result = sample(compiled, **settings)
    torch.compiler.reset()
    assert record_of(compiled).strip(0) == record_of(plain).strip(0)
    assert record_of(compiled).strip(0).count("#") == STEPS // 2
    assert (result - expected).abs().max() < 1e-4 * expected.abs().max()
