"""Set-ups that once drew wrong pictures, broke budgets, crashed or said what was not so: each with
the situations of its kind."""

import asyncio
import importlib
import json
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from rapid_testing.families import LTX_AUDIO
from rapid_testing.frozen import EVERY
from rapid_testing.safety import even_so
from rapid_testing.sampling import custom, empty_latent, make_conditioning, sample, sigmas_of

STEPS = 8


def euler(wrapped, x, sigmas, extra_args=None, callback=None, disable=None):
    """Euler, that calls back as the host's samplers do."""
    for i in range(len(sigmas) - 1):
        denoised = wrapped(x, sigmas[i] * x.new_ones(len(x)), **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "denoised": denoised})
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


def reasons_of(record):
    """Reasons why something was computed in full."""
    return {reason for e in record.evaluations for reason in e.reasons}


def codes(reasons):
    return [reason.code for reason in reasons]


# A guider, a wrapper or a sampler gives something else than one tensor like the latent.


def first_of_what_is_given(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Euler on the first of the tensors that a guider gives."""
    options = {name: extra_args[name] for name in ("model_options", "seed")}
    for i in range(len(sigmas) - 1):
        given = model.inner_model(x, sigmas[i] * x.new_ones(len(x)), **options)
        denoised = given[: len(x)] if isinstance(given, torch.Tensor) else given[0]
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


def guider_class(give):
    """A CFGGuider that gives give(denoised)."""
    import comfy.samplers

    class Guider(comfy.samplers.CFGGuider):
        def predict_noise(self, *arguments, **named):
            return give(super().predict_noise(*arguments, **named))

    return Guider


@pytest.mark.parametrize("name", EVERY)
def test_a_guider_that_gives_two_tensors_is_computed_in_full(tiny_flux, patched, record_of, name):
    """As LanPaint's does."""
    model = patched(tiny_flux, name)
    two = guider_class(lambda denoised: (denoised, denoised))
    run = dict(cfg=3.0, guider=two)
    out = custom(model, first_of_what_is_given, sigmas_of(model), **run)
    assert torch.equal(out, custom(tiny_flux, first_of_what_is_given, sigmas_of(model), **run))
    (reason,) = [n for n in record_of(model).notes if n.code == "not_one_tensor"]
    assert reason.params == {"given": "2 values"} and record_of(model).status == "finished"
    assert record_of(model).seconds == 0  # not known: no evaluation was followed to its end
    assert "little_short" not in [n.code for n in record_of(model).notes]
    assert not any(e.token_share != (1.0,) for e in record_of(model).evaluations)


def test_a_run_that_ends_within_its_first_evaluation_took_no_time_below_zero(
    tiny_flux, patched, record_of
):
    import comfy.model_management

    interruption = comfy.model_management.InterruptProcessingException

    def stop(denoised):
        raise interruption

    model = patched(tiny_flux, "accelerate 2")
    with pytest.raises(interruption):
        custom(model, first_of_what_is_given, sigmas_of(model), guider=guider_class(stop))
    assert record_of(model).status == "interrupted" and record_of(model).seconds == 0


@pytest.mark.parametrize(
    "give, given",
    [
        (lambda d: [d], "1 values"),
        (lambda d: {0: d}, "dict"),
        (lambda d: torch.cat((d, d)), "a tensor of 2 x 16 x 16 x 16"),
    ],
)
def test_whatever_a_guider_gives_that_is_not_one_latent_is_said(
    tiny_flux, patched, record_of, give, given
):
    model = patched(tiny_flux, "accelerate 2")
    run = dict(guider=guider_class(give))
    out = custom(model, first_of_what_is_given, sigmas_of(model), **run)
    assert torch.equal(out, custom(tiny_flux, first_of_what_is_given, sigmas_of(model), **run))
    (reason,) = [n for n in record_of(model).notes if n.code == "not_one_tensor"]
    assert reason.params == {"given": given}


@pytest.mark.parametrize("name", EVERY)
def test_a_wrapper_that_gives_a_third_prediction_is_computed_in_full(
    tiny_sd3, patched, record_of, name
):
    """One that is nearer to the model than ours: it is put there when the run has begun."""
    from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

    def with_a_third(executor, *arguments):
        out = executor(*arguments)
        return [*out, out[0]]

    def put(executor, *arguments, **named):
        add_wrapper_with_key(
            WrappersMP.CALC_COND_BATCH,
            "third",
            with_a_third,
            executor.class_obj.model_options,
            is_model_options=True,
        )
        return executor(*arguments, **named)

    model = patched(tiny_sd3, name)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "third", put)
    settings = dict(steps=STEPS, cfg=3.0)
    assert torch.equal(sample(model, **settings), sample(tiny_sd3, **settings))
    (reason,) = [n for n in record_of(model).notes if n.code == "not_one_tensor"]
    assert reason.params == {"given": "3 values"}


# Something is repeated, split or entered again inside one evaluation.


def with_control(model):
    """A model that a ControlNet acts on in every call, by residuals as large as the blocks'."""
    from comfy.patcher_extension import WrappersMP

    def controlled(executor, x, t, c_concat, c_crossattn, control, options, **extra):
        number = x.shape[-1] * x.shape[-2] // 4
        generator = torch.Generator().manual_seed(5)
        residuals = [
            3 * torch.randn(1, number, 128, generator=generator).expand(len(x), -1, -1)
            for _ in range(4)
        ]
        control = {"input": residuals[:2], "output": residuals[2:]}
        return executor(x, t, c_concat, c_crossattn, control, options, **extra)

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "control", controlled)
    return model


def halves(apply_model, arguments):
    """Two tiles, one after the other."""
    x, t, c = (arguments[name] for name in ("input", "timestep", "c"))
    return torch.cat([apply_model(tile, t, **c) for tile in x.chunk(2, -1)], -1)


def stacked_halves(apply_model, arguments):
    """Two tiles in one call."""
    x, t, c = (arguments[name] for name in ("input", "timestep", "c"))
    twice = {
        name: value.repeat(2, *[1] * (value.ndim - 1)) if isinstance(value, torch.Tensor) else value
        for name, value in c.items()
    }
    tiles = torch.cat(x.chunk(2, -1))
    return torch.cat(apply_model(tiles, t.repeat(2), **twice).chunk(2), -1)


def averaged(apply_model, arguments):
    """The whole latent, twice."""
    x, t, c = (arguments[name] for name in ("input", "timestep", "c"))
    return (apply_model(x, t, **c) + apply_model(x, t, **c)) / 2


@pytest.fixture
def watched():
    """watched(model, calls_of, first): the model under a wrapper that calls it as `calls_of` does,
    from its evaluation `first` on, and what happened: (evaluation, with control, blocks ran) of
    every call."""
    undo = []

    def watched(model, calls_of, first=0):
        calls = []
        made = Counter()
        network = model.model.diffusion_model
        forward = network.forward
        layers = (
            network.double_blocks if hasattr(network, "double_blocks") else network.joint_blocks
        )

        def count(apply_model, arguments):
            made["evaluations"] += 1
            if made["evaluations"] > first:
                return calls_of(apply_model, arguments)
            return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

        def call(*arguments, **named):
            calls.append([made["evaluations"] - 1, named.get("control") is not None, False])
            return forward(*arguments, **named)

        def block(*_):
            calls[-1][2] = True

        network.forward = call
        hook = layers[1].register_forward_hook(block)
        undo.extend((hook.remove, lambda: delattr(network, "forward")))
        model.set_model_unet_function_wrapper(count)
        return model, calls

    yield watched
    for each in undo:
        each()


@pytest.mark.parametrize("calls_of", [halves, stacked_halves, averaged])
@pytest.mark.parametrize("first", [0, 5])
def test_where_a_node_calls_the_model_once_a_tile_blocks_are_not_reused_and_controls_not_dropped(
    tiny_model, patched, watched, record_of, calls_of, first
):
    """As MultiDiffusion does."""
    model, calls = watched(with_control(tiny_model), calls_of, first)
    model = patched(model, "reuse", reuse_threshold=10.0)
    sample(model, steps=STEPS, latent=empty_latent(height=16, width=32))
    record = record_of(model)
    assert all(control for _, control, ran in calls if ran)
    modes = [e.modes[0] for e in record.evaluations]
    ran = [any(ran for i, _, ran in calls if i == evaluation) for evaluation in range(STEPS)]
    mixed = first if calls_of is averaged and first else None  # one call of it was reused
    for evaluation in set(range(STEPS)) - {mixed}:
        assert ran[evaluation] == (modes[evaluation] == "run")
    assert modes[first:].count("reuse") <= 1
    if calls_of is stacked_halves and not first:
        assert set(codes(reasons_of(record))) <= {"cond_without_residual", "called_again"}
    else:
        assert codes(reasons_of(record)) == ["called_again"]
    if first:
        assert "reuse" in modes[:first]  # as long as it could


@pytest.mark.parametrize("calls_of", [halves, stacked_halves, averaged])
@pytest.mark.parametrize("first", [0, 5])
def test_where_a_node_calls_the_model_once_a_tile_all_tokens_are_computed(
    tiny_model, patched, watched, record_of, calls_of, first
):
    model, calls = watched(with_control(tiny_model), calls_of, first)
    model = patched(model, "region", warm_up=0.0, tail=0.0, refresh_interval=0)
    out = sample(model, steps=STEPS, latent=empty_latent(height=16, width=32))
    record = record_of(model)
    assert out.isfinite().all() and all(control for _, control, _ in calls)
    shares = [e.token_share[0] for e in record.evaluations]
    assert min(shares[first + 1 :]) == 1 and (not first or min(shares[:first]) < 1)
    assert shares[first] == 1 or calls_of is averaged


def test_what_is_skipped_needs_no_call_and_tiles_are_no_reason(
    tiny_sd3, patched, watched, record_of
):
    model, calls = watched(tiny_sd3, halves)
    model = even_so(patched(model, "accelerate 2"))
    sample(model, steps=STEPS, latent=empty_latent(height=16, width=32))
    assert len(calls) == 2 * record_of(model).totals["computed"] == STEPS
    assert not reasons_of(record_of(model))


# What only reports fails.


@pytest.fixture
def failing_record(monkeypatch, pack_module):
    """failing_record(): records cannot be made any more."""

    def fail(*_):
        raise RuntimeError("a mistake in the report")

    module = pack_module("rapid_core.engine.recorder")
    return lambda: monkeypatch.setattr(module, "fingerprint", fail)


FAILED = {"error": "RuntimeError: a mistake in the report"}


@pytest.mark.parametrize("name", EVERY)
def test_a_record_that_cannot_be_made_costs_no_picture(
    tiny_flux, patched, record_of, failing_record, name
):
    wanted = sample(patched(tiny_flux, name), steps=STEPS)
    model = patched(tiny_flux, name)
    failing_record()
    assert torch.equal(sample(model, steps=STEPS), wanted)
    record = record_of(model)
    assert record.status == "finished" and len(record.evaluations) == STEPS
    assert record.notes[-1].code == "record_failed" and record.notes[-1].params == FAILED


def test_a_record_that_cannot_be_made_hides_no_other_error(
    tiny_flux, patched, record_of, failing_record
):
    def breaks(wrapped, x, sigmas, extra_args=None, callback=None, disable=None):
        wrapped(x, sigmas[0] * x.new_ones(len(x)), **extra_args)
        raise ValueError("the error that counts")

    model = patched(tiny_flux, "accelerate 2")
    failing_record()
    with pytest.raises(ValueError, match="the error that counts") as raised:
        custom(model, breaks, sigmas_of(model))
    assert raised.value.__context__ is None
    assert record_of(model).status == "failed"


@pytest.mark.parametrize("name", EVERY)
def test_an_evaluation_that_cannot_be_recorded_costs_no_picture(
    tiny_flux, patched, record_of, pack_module, monkeypatch, name
):
    recorder = pack_module("rapid_core.engine.recorder").RunRecorder
    real = recorder.add

    def add(self, evaluation, stored):
        if evaluation.index in (2, 5):
            raise RuntimeError("a mistake in the report")
        real(self, evaluation, stored)

    wanted = sample(patched(tiny_flux, name), steps=STEPS)
    monkeypatch.setattr(recorder, "add", add)
    model = patched(tiny_flux, name)
    assert torch.equal(sample(model, steps=STEPS), wanted)
    record = record_of(model)
    assert [e.index for e in record.evaluations] == [0, 1, 3, 4, 6, 7]
    failed = [note for note in record.notes if note.code == "record_failed"]
    assert [note.params for note in failed] == [FAILED]
    json.dumps(record.to_json(), allow_nan=False)


def test_a_report_that_cannot_be_drawn_passes_the_latent_on(
    tiny_flux, patched, comfy_host, pack_module, monkeypatch
):
    def fail(*_):
        raise RuntimeError("a mistake in the report")

    model = patched(tiny_flux, "accelerate 2")
    latent = {"samples": sample(model, steps=4)}
    monkeypatch.setattr(pack_module("nodes.report"), "draw", fail)
    passed, words, picture, _ = comfy_host.run_node("RAPID_Report", model=model, latent=latent)
    assert passed is latent and "RuntimeError: a mistake in the report" in words
    assert picture.shape[-1] == 3


def test_a_model_that_gives_no_numbers_has_a_record_in_json(tiny_flux, patched, record_of):
    tiny_flux.set_model_unet_function_wrapper(lambda apply, given: given["input"] * math.nan)
    for name in EVERY:
        model = patched(tiny_flux, name)
        sample(model, steps=STEPS)
        json.dumps(record_of(model).to_json(), allow_nan=False)


@pytest.mark.parametrize("name", EVERY)
def test_an_evaluation_at_sigma_zero_gives_numbers(tiny_flux, patched, name):
    def to_zero(wrapped, x, sigmas, extra_args=None, callback=None, disable=None):
        for sigma in (1.0, 0.7, 0.4, 0.2, 0.0, 0.0):
            x = wrapped(x, sigma * x.new_ones(len(x)), **extra_args)
        return x

    sigmas = torch.tensor([1.0, 0.7, 0.4, 0.2, 0.0])
    assert custom(patched(tiny_flux, name), to_zero, sigmas).isfinite().all()


# Rows of a batch at sigmas of their own.


def lagging(power):
    """Euler on two images, the second at the schedule's sigmas to a power."""

    def function(wrapped, x, sigmas, extra_args=None, callback=None, disable=None):
        own = torch.stack((sigmas, sigmas**power), 1)
        for now, following in zip(own, own[1:], strict=False):
            denoised = wrapped(x, now, **extra_args)
            step = (following - now) / now
            x = x + (x - denoised) * step.view(-1, 1, 1, 1)
        return x

    return function


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("name, slope", [("accelerate 2", 0.0), ("skip", 0.0), ("skip", 1.0)])
def test_each_image_of_a_batch_is_predicted_with_its_own_sigma(
    tiny_flux, patched, record_of, monkeypatch, name, slope, cfg, joined
):
    """Derivatives that move on a line over an image's own sigma: predictions are exact."""
    import comfy.samplers

    base, rise = torch.randn(2, 2, 16, 16, 16, generator=torch.Generator().manual_seed(5))

    def on_a_line(apply_model, given):
        x = given["input"]
        sigma = given["timestep"].view(-1, 1, 1, 1)
        chunks = len(given["cond_or_uncond"])
        sign = torch.tensor([1.0 - 2.0 * place for place in given["cond_or_uncond"]])
        derivative = base.repeat(chunks, 1, 1, 1) + slope * sigma * rise.repeat(chunks, 1, 1, 1)
        return x - sigma * derivative * sign.repeat_interleave(2).view(-1, 1, 1, 1)

    if not joined:
        monkeypatch.setattr(comfy.samplers, "can_concat_cond", lambda a, b: a is b)
    tiny_flux.set_model_unet_function_wrapper(on_a_line)
    model = patched(tiny_flux, name)
    run = dict(cfg=cfg, latent=empty_latent(batch=2))
    sigmas = torch.linspace(1, 0, 13)
    out, full = (custom(m, lagging(2), sigmas, **run) for m in (model, tiny_flux))
    assert (out - full).abs().max() < 1e-4 * full.abs().max()
    record = record_of(model)
    assert all(record.strip(image).count(".") > 2 for image in range(2))
    assert record.evaluations[3].sigmas == pytest.approx((0.75, 0.5625))


# A second technique on the model.


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("name", ["per token", "region", "accelerate 3"])
def test_the_cap_of_cache_reuse_holds_beside_another_node(
    tiny_flux, patched, record_of, order, name
):
    other = dict(error_threshold=10.0) if name == "per token" else {}
    nodes = [("skip", dict(reuse_threshold=10.0, max_consecutive=1)), (name, other)][::order]
    model = tiny_flux
    for node, settings in nodes:
        model = patched(model, node, **settings)
    sample(model, steps=20)
    longest = max(map(len, record_of(model).strip(0).replace("+", "#").split("#")))
    assert longest == 1
    alone = patched(tiny_flux, name, **other)
    sample(alone, steps=20)
    assert name == "region" or ".." in record_of(alone).strip(0)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("name", ["per token", "region", "accelerate 3"])
def test_the_guard_of_cache_reuse_holds_beside_another_node(
    tiny_flux, patched, record_of, order, name
):
    """After a prediction that was measured too far off, the next evaluation computes everything."""
    other = dict(error_threshold=10.0) if name == "per token" else {}
    nodes = [("skip", dict(reuse_threshold=10.0, guard=0.3)), (name, other)][::order]
    model = tiny_flux
    for node, settings in nodes:
        model = patched(model, node, **settings)
    sample(model, steps=20)
    evaluations = record_of(model).evaluations
    measured = None
    checked = 0
    for e in evaluations:
        if measured is not None and measured > 0.3:
            checked += 1
            assert e.modes == ("run",) and e.token_share == (1.0,)
        measured = e.measured_error[0] if e.measured_error[0] is not None else measured
    assert checked


# A sampler tells the model other sigmas than the schedule's.


def telling(factor, everywhere=False):
    """Euler that tells the model its sigmas times a factor, in the middle of the run or all the
    time."""

    def function(wrapped, x, sigmas, extra_args=None, callback=None, disable=None):
        def told(x, sigma, **named):
            middle = everywhere or 0.25 < float(sigma.max()) < 0.95
            return wrapped(x, sigma * factor if middle else sigma, **named)

        return euler(told, x, sigmas, extra_args, callback, disable)

    return function


@pytest.mark.parametrize("factor", [0.9, 0.95, 0.98, 1.0, 1.05, 1.1])
@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("scheduler, steps", [("simple", 28), ("simple", 50), ("linear", 20)])
def test_the_budget_and_its_gaps_hold_where_a_sampler_tells_other_sigmas(
    tiny_sd3, patched, record_of, factor, everywhere, scheduler, steps
):
    """As Detail Daemon and Lying Sigma do. On equal steps some of what is told is by chance of the
    schedule."""
    model = even_so(patched(tiny_sd3, "accelerate 2"))
    sigmas = sigmas_of(model, steps) if scheduler == "simple" else torch.linspace(1, 0, steps + 1)
    custom(model, telling(factor, everywhere), sigmas)
    marks = record_of(model).strip(0)
    assert len(marks) == steps and marks.count("#") <= steps // 2
    assert max(map(len, marks.split("#"))) <= 2 and marks[-1] == "#"


# Parts of a packed latent.


@pytest.fixture(scope="session")
def video_with_audio():
    """A MODEL of video and audio, a latent of both, and what samples it."""
    import comfy.nested_tensor
    import comfy.sample

    model = LTX_AUDIO.build()
    parts = (torch.zeros(1, 128, 6, 10, 16), torch.zeros(1, 8, 30, 16))

    def run(model, cfg=1.0, steps=16):
        latent = comfy.nested_tensor.NestedTensor(list(parts))
        noise = comfy.sample.prepare_noise(latent, 0)
        with torch.inference_mode():
            return comfy.sample.sample(
                model,
                noise,
                steps,
                cfg,
                "euler",
                "simple",
                LTX_AUDIO.conditioning(0),
                LTX_AUDIO.conditioning(1),
                latent,
                disable_pbar=True,
                seed=0,
            )

    sizes = [part.numel() for part in parts]
    return SimpleNamespace(model=model, run=run, sizes=sizes)


@pytest.mark.parametrize("name", EVERY)
def test_video_with_audio_is_sampled_with_every_node(
    video_with_audio, patched, record_of, comfy_host, name
):
    model = patched(video_with_audio.model.clone(), name)
    out = video_with_audio.run(model, cfg=3.0)
    assert all(part.isfinite().all() for part in out.unbind())
    words = comfy_host.run_node("RAPID_Report", model=model, latent={"samples": out})[1]
    assert record_of(model).strip(0) in words


@pytest.mark.parametrize("threshold", [0.05, 0.5])
@pytest.mark.parametrize("rough_part", [0, 1])
def test_cache_reuse_skips_no_part_of_a_packed_latent_by_the_errors_of_another(
    video_with_audio, patched, record_of, threshold, rough_part
):
    """One part has a constant derivative; that of the other turns over at every step. Over both, the
    error of the audio alone would be far below the higher threshold."""
    sizes = video_with_audio.sizes
    constant = torch.randn(1, 1, sum(sizes), generator=torch.Generator().manual_seed(9))
    rough = slice(0, sizes[0]) if rough_part == 0 else slice(sizes[0], None)

    def turning(apply_model, given):
        x = given["input"]
        sigma = given["timestep"].view(-1, 1, 1)
        derivative = constant.expand(len(x), -1, -1).clone()
        step = (sigmas >= float(sigma.max()) - 1e-6).sum()
        derivative[..., rough] *= 1.0 if step % 2 else -1.0
        return x - sigma * derivative

    model = video_with_audio.model.clone()
    sigmas = sigmas_of(model, 16)
    model.set_model_unet_function_wrapper(turning)
    full = video_with_audio.run(model).unbind()
    reusing = patched(model, "skip", reuse_threshold=threshold, guard=0.5)
    out = video_with_audio.run(reusing).unbind()
    for part, reference in zip(out, full, strict=True):
        assert (part - reference).abs().mean() < 0.05 * reference.abs().mean()
    errors = [e.measured_error[0] for e in record_of(reusing).evaluations]
    assert max(filter(None, errors)) > 1


# A host that is not as this version knows it.


def gone(*_):
    raise AttributeError("'Flux' object has no attribute 'params'")


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("missing", ["describe", "CostModel", "block_table", "an attribute"])
def test_of_a_model_that_lacks_what_a_plan_reads_whole_evaluations_are_skipped_alone(
    load_tiny, patched, record_of, pack_module, monkeypatch, name, missing
):
    tiny = load_tiny("flux")
    skips = name in ("accelerate 2", "skip")
    wanted = sample(patched(tiny, name) if skips else tiny, steps=STEPS, cfg=3.0)
    if missing == "an attribute":
        del tiny.model.diffusion_model.hidden_size  # which its own forward does not read
    for module in ("chain", "facts", "blocks"):
        module = pack_module(f"rapid_core.comfy.{module}")
        if hasattr(module, missing):
            monkeypatch.setattr(module, missing, gone)
    model = patched(tiny, name)
    assert torch.equal(sample(model, steps=STEPS, cfg=3.0), wanted)
    record = record_of(model)
    assert record.status == "finished" and record.family == "Flux (unverified)"
    assert (record.totals["skipped"] > 0) == skips and record.totals[
        "speedup_theoretical"
    ] is not None
    said = codes([*record.notes, *(r for e in record.evaluations for r in e.reasons)])
    assert ("blocks_unread" in said) == (missing != "an attribute")
    assert skips or set(said) & {"unknown_to_region", "blocks_unknown", "attention_dense"}


def test_hooks_that_cannot_be_installed_cost_no_picture(
    tiny_flux, patched, record_of, pack_module, monkeypatch
):
    monkeypatch.setattr(pack_module("rapid_core.comfy.bind").BoundRun, "install", gone)
    model = patched(tiny_flux, "region")
    assert torch.equal(sample(model, steps=STEPS), sample(tiny_flux, steps=STEPS))
    assert codes(record_of(model).notes) == ["not_planned"]


# What is the user's, or another pack's, is left alone.


@pytest.fixture
def step_head(pack_module, tmp_path, pack, comfy_host, tiny_flux):
    """A policy file with a step head for the tiny FLUX model, as RAPID Load Policy gives it."""
    files = pack_module("rapid_core.policy_file.heads")
    formats = pack_module("rapid_core.policy_file.format")
    heads = pack_module("rapid_core.techniques.heads.rapid3").Heads(
        16, tiny_flux.model.diffusion_model.hidden_size, ("step",), width=16
    )
    metadata = dict(
        architecture="flux",
        base_model="tiny",
        budgets=[2.0],
        reward="psnr",
        licence="Apache-2.0",
        training_command="-",
        **files.head_metadata(heads, 0, (0.5, 0.25, 0.125)),
    )
    file = tmp_path / "step.safetensors"
    formats.write(file, "heads", metadata, files.head_tensors(heads))
    return formats.read(file)


def by_policy_sampler(comfy_host, model, policy):
    import comfy.sample

    (sampler,) = comfy_host.run_node("RAPID_PolicySampler", policy=policy, speedup=2.0)
    latent = empty_latent()
    with torch.inference_mode():
        return comfy.sample.sample_custom(
            model,
            comfy.sample.prepare_noise(latent, 0),
            1.0,
            sampler,
            sigmas_of(model),
            make_conditioning(0),
            make_conditioning(1),
            latent,
            disable_pbar=True,
            seed=0,
        ).clone()


def test_the_policy_sampler_writes_nothing_onto_the_users_model(
    comfy_host, pack_module, tiny_flux, step_head
):
    def state():
        return dict(tiny_flux.attachments), repr(tiny_flux.model_options), dict(tiny_flux.wrappers)

    before = state()
    out = by_policy_sampler(comfy_host, tiny_flux, step_head)
    assert state() == before
    record_of = pack_module("rapid_core.comfy.chain").record_of
    record = record_of(tiny_flux, out)
    assert record is not None and "sampler_chose" in codes(record.notes)
    assert record_of(tiny_flux, out + 1) is None  # of another latent


def test_a_record_that_cannot_be_made_costs_no_picture_of_the_policy_sampler(
    comfy_host, tiny_flux, step_head, failing_record
):
    wanted = by_policy_sampler(comfy_host, tiny_flux, step_head)
    failing_record()
    assert torch.equal(by_policy_sampler(comfy_host, tiny_flux, step_head), wanted)


def test_no_node_ids_but_the_packs_own_are_registered(comfy_host, pack, monkeypatch):
    """Neither as nodes nor as replacements of nodes of other packs, which ComfyUI would put into
    their workflows without asking."""
    from comfy_api.latest import ComfyAPI

    replaced = []

    async def register(self, replacement):
        replaced.append(replacement)

    if hasattr(ComfyAPI, "NodeReplacement"):  # older hosts replace nothing
        monkeypatch.setattr(ComfyAPI.NodeReplacement, "register", register)

    async def load():
        extension = await pack.comfy_entrypoint()
        await extension.on_load()
        return await extension.get_node_list()

    nodes = asyncio.run(load())
    assert not replaced
    ids = [node.GET_SCHEMA().node_id for node in nodes]
    assert len(set(ids)) == len(ids) and all(name.startswith("RAPID_") for name in ids)
    module = importlib.import_module(pack.__name__)
    assert not getattr(module, "NODE_CLASS_MAPPINGS", None)


# A guider that has its conditionings computed in two calls.


def test_two_calls_for_conditionings_cost_what_one_does(tiny_flux, patched, record_of):
    """As DualModelGuider makes them: what a skipped step would have cost is counted once."""
    import comfy.samplers

    class TwoCalls(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
            given = (self.inner_model, x, timestep, model_options)
            positive, negative = (
                comfy.samplers.calc_cond_batch(given[0], [self.conds[name]], *given[1:])[0]
                for name in ("positive", "negative")
            )
            return negative + (positive - negative) * self.cfg

    model = patched(tiny_flux, "accelerate 2")
    totals = []
    for guider in (None, TwoCalls):
        custom(model, euler, sigmas_of(model), cfg=3.0, guider=guider)
        totals.append(record_of(model).totals)
    one, two = totals
    assert two["skipped"] == one["skipped"] > 0
    assert two["flops"] == one["flops"]
    assert two["full_flops"] == one["full_flops"]
