"""TPDM's heads in the real ComfyUI: what they see of a small SD3-like model, and what they decide
on it."""

import gc
import weakref
from pathlib import Path

import pytest
import torch

from rapid_testing.sampling import empty_latent, make_conditioning, sample

STEPS, HIDDEN, SIDE = 10, 128, 8  # of the tiny model, on a latent of 16 x 16
NAME = "tpdm-test.safetensors"


@pytest.fixture
def accelerate(comfy_host, pack, pack_module):
    """accelerate(model): the model with random TPDM heads out of a file; stay: heads that hardly
    jump at all."""
    import folder_paths

    module, files = (pack_module(f"rapid_core.policies.{name}") for name in ("tpdm", "from_file"))
    path = Path(folder_paths.get_folder_paths("rapid_policies")[0]) / NAME

    def patch(model, hidden=HIDDEN, stay=False):
        torch.manual_seed(3)
        heads = module.TPDMHeads(hidden, SIDE, 16)
        if stay:
            torch.nn.init.constant_(heads.heads["step"].fc2.bias[0], 20.0)
        metadata = dict(
            architecture="sd3",
            base_model="tiny",
            budgets=[1.0],
            reward="-",
            licence="Apache-2.0",
            training_command="-",
            **files.tpdm_metadata(heads),
        )
        pack_module("rapid_core.policy_file.format").write(
            path, "heads", metadata, heads.state_dict()
        )
        policy = comfy_host.run_node("RAPID_LoadPolicy", policy=NAME)[0]
        return comfy_host.run_node("RAPID_Accelerate", model=model, speedup=1.1, policy=policy)[0]

    yield patch
    path.unlink(missing_ok=True)


@pytest.fixture
def looks(pack_module, monkeypatch):
    """Every Features that the actor was shown: (number of the evaluation it decides, image,
    features)."""
    module, seen = pack_module("rapid_core.techniques.heads.tpdm"), []
    real = module.TPDMActor.ask

    def ask(self, looks, sigma):
        found = real(self, looks, sigma)
        seen.extend((i, looks[i].features) for i in self.asked)
        return found

    monkeypatch.setattr(module.TPDMActor, "ask", ask)
    return seen


class Hooks:
    """What the model itself passes on in every call: tokens into the first block and into the final
    layer's matrix, and its modulation vector, with the conditions of the rows."""

    def __init__(self, model):
        network, self.calls = model.model.diffusion_model, []
        self.handles = [
            network.joint_blocks[0].register_forward_pre_hook(self._first, with_kwargs=True),
            network.final_layer.register_forward_pre_hook(self._last),
            network.final_layer.linear.register_forward_pre_hook(self._matrix),
        ]

    def _first(self, module, args, named):
        self.calls.append(
            {"before": args[1].clone(), "conds": named["transformer_options"]["cond_or_uncond"]}
        )

    def _last(self, module, args):
        self.calls[-1]["vec"] = args[1].clone()

    def _matrix(self, module, args):
        if "final" not in self.calls[-1]:  # the model's own; nothing else may call its matrix
            self.calls[-1]["final"] = args[0].clone()
            return
        raise AssertionError("the final layer's matrix was applied twice in a call")

    def remove(self):
        for handle in self.handles:
            handle.remove()

    def mixed(self, batch, scale):
        """Per computed evaluation and image (tokens, vec), conditions mixed by guidance; every
        evaluation has as many conditions as the first."""
        rows, out = {}, []
        for call in self.calls:
            for chunk, cond in enumerate(call["conds"]):
                for image in range(batch):
                    row = chunk * batch + image
                    tokens = torch.cat((call["before"][row], call["final"][row]), 1)
                    rows.setdefault((cond, image), []).append((tokens, call["vec"][row]))
        for n in range(len(rows[0, 0])):
            for image in range(batch):
                cond = rows[0, image][n]
                other = rows[1, image][n] if (1, image) in rows else cond
                out.append(tuple(u + scale * (c - u) for c, u in zip(cond, other, strict=True)))
        return out


@pytest.fixture
def hooks():
    found = []

    def put(model):
        found.append(Hooks(model))
        return found[-1]

    yield put
    for each in found:
        each.remove()


def nears(a, b):
    return (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize("batch, cfg", [(1, 1.0), (1, 5.0), (2, 5.0)])
@pytest.mark.parametrize("kind", ["sd3", "sd35"])
def test_heads_see_what_the_model_passes_on(
    accelerate, load_tiny, record_of, looks, hooks, kind, batch, cfg
):
    """All images decide alike here, so that every call has all rows."""
    model = load_tiny(kind)
    patched, watched = accelerate(model, stay=True), hooks(model)
    sample(patched, steps=STEPS, cfg=cfg, latent=empty_latent(batch))
    record, wanted = record_of(patched), watched.mixed(batch, cfg)
    ran = sum(levels == "run" for e in record.evaluations for levels in e.levels)
    assert ran == len(wanted) == 9 * batch  # 1.1 times the speed
    assert len(looks) == ran and [image for image, _ in looks] == [*range(batch)] * 9
    for (_, found), (tokens, vec) in zip(looks, wanted, strict=True):
        assert found.tokens.shape == (SIDE**2, 2 * HIDDEN) and found.tokens.dtype == torch.float32
        assert nears(found.tokens, tokens) and nears(found.modulation, vec)


def policy_of(patched):
    """The policy that a node put on a model."""
    return patched.model_options["transformer_options"]["rapid"].policies[-1]


def test_the_head_decides_and_joined_and_split_streams_decide_the_same(
    accelerate, tiny_sd3, record_of, looks, monkeypatch
):
    import comfy.samplers

    settings = dict(steps=STEPS, cfg=4.0, latent=empty_latent(2))
    joined_model = accelerate(tiny_sd3)
    joined, first = sample(joined_model, **settings), list(looks)
    looks.clear()
    monkeypatch.setattr(comfy.samplers, "can_concat_cond", lambda a, b: a is b)
    split_model = accelerate(tiny_sd3)
    split = sample(split_model, **settings)
    decisions = [[e.levels for e in record_of(m).evaluations] for m in (joined_model, split_model)]
    assert decisions[0] == decisions[1]
    assert any("hold" in levels for levels in decisions[0]) and any(
        "run" in levels for levels in decisions[0][1:]
    )
    assert torch.allclose(joined, split, rtol=1e-4, atol=1e-4)
    assert len(first) == len(looks) > 1
    for (i, a), (j, b) in zip(first, looks, strict=True):
        assert (
            i == j
            and a.evaluation == b.evaluation
            and torch.allclose(a.tokens, b.tokens, rtol=1e-4, atol=1e-4)
        )


def test_a_jump_lands_on_the_first_noise_level_below_it(accelerate, tiny_sd3, record_of, looks):
    """The strip of the record, from the published rule and the features that were seen."""
    patched = accelerate(tiny_sd3)
    sample(patched, steps=STEPS, cfg=4.0)
    record, heads, shown = (
        record_of(patched),
        policy_of(patched).heads,
        dict((f.evaluation, f) for _, f in looks),
    )
    target, expected = float("inf"), []
    for e in record.evaluations:
        runs = e.sigma <= target
        expected.append("run" if runs else "hold")
        if runs and e.index in shown:
            a, b = (
                heads(shown[e.index].tokens[None], shown[e.index].modulation[None])["step"][0]
                .exp()
                .tolist()
            )
            target = e.sigma * a / (a + b)
    assert [e.levels[0] for e in record.evaluations] == expected and {"run", "hold"} == set(
        expected
    )
    assert record.policies[0]["technique"] == "tpdm" and record.totals["held"] == expected.count(
        "hold"
    )


def test_what_a_control_adds_to_the_last_block_is_seen(
    accelerate, tiny_sd3, looks, hooks, pack_module
):
    from comfy.patcher_extension import WrappersMP

    def controlled(
        executor,
        x,
        t,
        c_concat=None,
        c_crossattn=None,
        control=None,
        transformer_options={},  # noqa: B006
        **extra,
    ):
        residual = torch.randn(1, SIDE**2, HIDDEN, generator=torch.Generator().manual_seed(5))
        return executor(
            x,
            t,
            c_concat,
            c_crossattn,
            {"output": [residual, residual]},
            transformer_options,
            **extra,
        )

    model = tiny_sd3.clone()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "control", controlled)
    patched, watched = accelerate(model), hooks(model)
    sample(patched, steps=4, cfg=4.0)
    wanted = watched.mixed(1, 4.0)
    assert looks and all(nears(found.tokens, wanted[n][0]) for n, (_, found) in enumerate(looks))
    sample(accelerate(tiny_sd3), steps=4, cfg=4.0)
    assert not torch.allclose(
        watched.mixed(1, 4.0)[len(wanted)][0], wanted[0][0], atol=0.1
    )  # it had an effect


@pytest.mark.parametrize(
    "settings, said",
    [
        (
            {"latent": empty_latent(height=16, width=32)},
            "8 x 8 tokens (128 x 128 px), this latent has 8 x 16",
        ),
        (
            {"positive": make_conditioning(0) + make_conditioning(2)},
            "2 positive and 1 negative conditions were computed",
        ),
    ],
)
def test_what_heads_cannot_look_at_is_computed_and_said(
    accelerate, tiny_sd3, record_of, settings, said
):
    patched, settings = accelerate(tiny_sd3), dict(steps=4, cfg=3.0, **settings)
    found = sample(patched, **settings)
    assert torch.equal(found, sample(tiny_sd3, **settings))
    assert {e.levels for e in record_of(patched).evaluations} == {("run",)}
    (note,) = [n for n in record_of(patched).notes if n.startswith("tpdm-sd3 heads: ")]
    assert said in note and note.endswith("where they would decide, everything is computed")


def test_with_another_nodes_guidance_or_blocks_everything_is_computed_and_said(
    accelerate, tiny_sd3, record_of, comfy_host
):
    import comfy.samplers

    model = tiny_sd3.clone()
    model.set_model_patch_replace(
        lambda args, extra: extra["original_block"](args), "dit", "double_block", 0
    )
    patched = accelerate(model)
    sample(patched, steps=4, cfg=3.0)
    assert "another node replaced double_block 0" in record_of(patched).text()
    assert record_of(patched).totals["computed"] == 4

    comfy_host.load_core_nodes("nodes_custom_sampler.py")
    patched = accelerate(tiny_sd3)
    conditions = dict(
        cond1=make_conditioning(0), cond2=make_conditioning(2), negative=make_conditioning(1)
    )
    guider = comfy_host.run_node(
        "DualCFGGuider",
        model=patched,
        cfg_conds=3.0,
        cfg_cond2_negative=2.0,
        style="regular",
        **conditions,
    )[0]
    sigmas = comfy.samplers.calculate_sigmas(
        tiny_sd3.get_model_object("model_sampling"), "simple", 4
    )
    with torch.inference_mode():
        guider.sample(
            torch.randn(1, 16, 16, 16),
            empty_latent(),
            comfy.samplers.sampler_object("euler"),
            sigmas,
            disable_pbar=True,
            seed=0,
        )
    assert "they do not know guidance with a condition named middle" in record_of(patched).text()
    assert record_of(patched).totals["computed"] == 4


def test_a_guider_that_changes_its_scale_is_followed(accelerate, tiny_sd3, looks, hooks):
    import comfy.samplers

    patched, watched = accelerate(tiny_sd3, stay=True), hooks(tiny_sd3)

    class Rising(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
            self.cfg += 1.0
            return super().predict_noise(x, timestep, model_options, seed)

    guider = Rising(patched)
    guider.set_conds(make_conditioning(0), make_conditioning(1))
    sigmas = comfy.samplers.calculate_sigmas(
        tiny_sd3.get_model_object("model_sampling"), "simple", 4
    )
    with torch.inference_mode():
        guider.sample(
            torch.randn(1, 16, 16, 16),
            empty_latent(),
            comfy.samplers.sampler_object("euler"),
            sigmas,
            disable_pbar=True,
            seed=0,
        )
    assert len(looks) > 1
    for n, (_, features) in enumerate(looks):
        assert nears(features.tokens, watched.mixed(1, 2.0 + n)[n][0])


def test_beside_region_adaptive_only_whole_evaluations_are_looked_at(
    accelerate, tiny_sd3, record_of, comfy_host, looks
):
    settings = dict(
        keep_ratio=0.5,
        preset="custom",
        warm_up=0.0,
        tail=0.0,
        refresh_interval=3,
        drift_threshold=0.0,
        metric="std",
        direction="low",
        starvation=0.3,
        inactive="forecast",
        slope=0.0,
    )
    both = comfy_host.run_node(
        "RAPID_RegionAdaptive", model=accelerate(tiny_sd3, stay=True), **settings
    )[0]
    assert torch.isfinite(sample(both, steps=STEPS, cfg=3.0)).all()
    whole = [
        e.index for e in record_of(both).evaluations if e.levels == ("run",) and e.share == (1.0,)
    ]
    assert 1 < len(whole) < 9 and {f.evaluation for _, f in looks} == set(whole)
    assert "no condition was computed on all tokens" in record_of(both).text()


def test_features_are_counted_and_die_with_the_run(
    accelerate, tiny_sd3, record_of, pack_module, monkeypatch
):
    module, alive = pack_module("rapid_core.engine.features"), []
    real = module.Features

    def features(*args):
        found = real(*args)
        alive.append(weakref.ref(found))
        return found

    monkeypatch.setattr(module, "Features", features)
    patched, settings = accelerate(tiny_sd3), dict(steps=4, cfg=3.0, latent=empty_latent(2))
    sample(patched, **settings)
    gc.collect()
    assert alive and not any(each() for each in alive)
    counted = record_of(patched)
    assert any(note.startswith("tokens for heads: ") for note in counted.notes)
    monkeypatch.setattr(module.FeatureStore, "bytes", 0)
    sample(patched, **settings)
    assert counted.bytes - record_of(patched).bytes == 2 * 4 * (SIDE**2 * 2 * HIDDEN + HIDDEN)


def test_heads_of_another_width_are_refused_when_the_node_runs(accelerate, tiny_sd3):
    with pytest.raises(ValueError, match="hidden = 256, trained on tiny; this model has 128"):
        accelerate(tiny_sd3, hidden=256)
