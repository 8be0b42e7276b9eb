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

    module = pack_module("rapid_core.techniques.heads.tpdm")
    files = pack_module("rapid_core.policy_file.heads")
    path = Path(folder_paths.get_folder_paths("rapid_policies")[0]) / NAME

    def patch(model, hidden=HIDDEN, stay=False):
        torch.manual_seed(3)
        heads = module.TPDMHeads(hidden, SIDE, 16)
        if stay:
            torch.nn.init.constant_(heads.heads["step"].fc2.bias[0], 20.0)
        metadata = {
            "architecture": "sd3",
            "base_model": "tiny",
            "budgets": [1.0],
            "reward": "-",
            "licence": "Apache-2.0",
            "training_command": "-",
            **files.tpdm_metadata(heads),
        }
        pack_module("rapid_core.policy_file.format").write(
            path, "heads", metadata, heads.state_dict()
        )
        policy = comfy_host.run_node("RAPID_LoadPolicy", policy=NAME)[0]
        return comfy_host.run_node("RAPID_Accelerate", model=model, speedup=1.1, policy=policy)[0]

    yield patch
    path.unlink(missing_ok=True)


@pytest.fixture
def looks(pack_module, monkeypatch):
    """Every Features that an actor decided by: (number of its image, features)."""
    module = pack_module("rapid_core.techniques.heads.tpdm")
    real = module.TPDMActor.logits
    seen = []

    def logits(self, shown, sigma):
        answer = real(self, shown, sigma)
        if answer is not None:
            seen.append((self.image, shown.features))
        return answer

    monkeypatch.setattr(module.TPDMActor, "logits", logits)
    return seen


class Hooks:
    """What the model itself passes on in every call: tokens into the first block and into the final
    layer's matrix, and its modulation vector, with the conditions of the rows."""

    def __init__(self, model):
        network = model.model.diffusion_model
        self.calls = []
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
        rows = {}
        out = []
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
    made = []

    def put(model):
        made.append(Hooks(model))
        return made[-1]

    yield put
    for each in made:
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
    patched = accelerate(model, stay=True)
    watched = hooks(model)
    sample(patched, steps=STEPS, cfg=cfg, latent=empty_latent(batch))
    record = record_of(patched)
    passed_on = watched.mixed(batch, cfg)
    ran = sum(mode == "run" for e in record.evaluations for mode in e.modes)
    assert ran == len(passed_on) == 9 * batch  # 1.1 times the speed
    assert len(looks) == ran and [image for image, _ in looks] == [*range(batch)] * 9
    for (_, features), (tokens, vec) in zip(looks, passed_on, strict=True):
        assert features.tokens.shape == (SIDE**2, 2 * HIDDEN)
        assert features.tokens.dtype == torch.float32
        assert nears(features.tokens, tokens) and nears(features.modulation, vec)


def policy_of(patched):
    """The policy that a node put on a model."""
    return patched.model_options["transformer_options"]["rapid"].policies[-1]


def test_the_head_decides_and_joined_and_split_conditionings_decide_the_same(
    accelerate, tiny_sd3, record_of, looks, monkeypatch
):
    import comfy.samplers

    settings = {"steps": STEPS, "cfg": 4.0, "latent": empty_latent(2)}
    joined_model = accelerate(tiny_sd3)
    joined = sample(joined_model, **settings)
    first = list(looks)
    looks.clear()
    monkeypatch.setattr(comfy.samplers, "can_concat_cond", lambda a, b: a is b)
    split_model = accelerate(tiny_sd3)
    split = sample(split_model, **settings)
    decisions = [[e.modes for e in record_of(m).evaluations] for m in (joined_model, split_model)]
    assert decisions[0] == decisions[1]
    assert any("skip" in modes for modes in decisions[0])
    assert any("run" in modes for modes in decisions[0][1:])
    assert torch.allclose(joined, split, rtol=1e-4, atol=1e-4)
    assert len(first) == len(looks) > 1
    for (i, a), (j, b) in zip(first, looks, strict=True):
        assert i == j and a.evaluation == b.evaluation
        assert torch.allclose(a.tokens, b.tokens, rtol=1e-4, atol=1e-4)


def test_a_jump_lands_on_the_first_sigma_below_it(accelerate, tiny_sd3, record_of, looks):
    """The strip of the record, from the published rule and the features that were seen."""
    patched = accelerate(tiny_sd3)
    sample(patched, steps=STEPS, cfg=4.0)
    record = record_of(patched)
    heads = policy_of(patched).heads
    shown = {features.evaluation: features for _, features in looks}
    target = float("inf")
    expected = []
    for e in record.evaluations:
        runs = e.sigma <= target
        expected.append("run" if runs else "skip")
        if runs and e.index in shown:
            features = shown[e.index]
            logits = heads(features.tokens[None], features.modulation[None])["step"][0]
            a, b = logits.exp().tolist()
            target = e.sigma * a / (a + b)
    assert [e.modes[0] for e in record.evaluations] == expected
    assert {"run", "skip"} == set(expected)
    assert record.policies[0]["technique"] == "tpdm"
    assert record.totals["skipped"] == expected.count("skip")


def test_what_a_control_adds_to_the_last_block_is_seen(accelerate, tiny_sd3, looks, hooks):
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
    patched = accelerate(model)
    watched = hooks(model)
    sample(patched, steps=4, cfg=4.0)
    passed_on = watched.mixed(1, 4.0)
    assert looks
    for n, (_, features) in enumerate(looks):
        assert nears(features.tokens, passed_on[n][0])
    sample(accelerate(tiny_sd3), steps=4, cfg=4.0)
    without = watched.mixed(1, 4.0)[len(passed_on)][0]
    assert not torch.allclose(without, passed_on[0][0], atol=0.1)  # it had an effect


@pytest.mark.parametrize(
    "settings, code, params",
    [
        (
            {"latent": empty_latent(height=16, width=32)},
            "HEADS_OTHER_SIZE",
            {"side": 8, "pixels": 128, "rows": 8, "columns": 16},
        ),
        (
            {"positive": make_conditioning(0) + make_conditioning(2)},
            "COND_NUMBERS",
            {"positive": 2, "negative": 1},
        ),
    ],
)
def test_what_heads_cannot_look_at_is_computed_and_said(
    accelerate, tiny_sd3, record_of, reason, settings, code, params
):
    patched = accelerate(tiny_sd3)
    settings = {"steps": 4, "cfg": 3.0, **settings}
    assert torch.equal(sample(patched, **settings), sample(tiny_sd3, **settings))
    assert {e.modes for e in record_of(patched).evaluations} == {("run",)}
    blind = [note for note in record_of(patched).notes if note.code == "heads_blind"]
    assert blind == [reason("HEADS_BLIND", kind="tpdm-sd3", why=reason(code, **params))]


def test_with_another_nodes_guidance_or_blocks_everything_is_computed_and_said(
    accelerate, tiny_sd3, record_of, comfy_host, reason
):
    import comfy.samplers

    model = tiny_sd3.clone()
    model.set_model_patch_replace(
        lambda args, extra: extra["original_block"](args), "dit", "double_block", 0
    )
    patched = accelerate(model)
    sample(patched, steps=4, cfg=3.0)
    why = reason("BLOCK_REPLACED", block="double_block 0")
    assert reason("HEADS_BLIND", kind="tpdm-sd3", why=why) in record_of(patched).notes
    assert record_of(patched).totals["computed"] == 4

    comfy_host.load_core_nodes("nodes_custom_sampler.py")
    patched = accelerate(tiny_sd3)
    guider = comfy_host.run_node(
        "DualCFGGuider",
        model=patched,
        cfg_conds=3.0,
        cfg_cond2_negative=2.0,
        style="regular",
        cond1=make_conditioning(0),
        cond2=make_conditioning(2),
        negative=make_conditioning(1),
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
    why = reason("HEADS_OTHER_COND", name="middle")
    assert reason("HEADS_BLIND", kind="tpdm-sd3", why=why) in record_of(patched).notes
    assert record_of(patched).totals["computed"] == 4


def test_a_guider_that_changes_its_scale_is_followed(accelerate, tiny_sd3, looks, hooks):
    import comfy.samplers

    patched = accelerate(tiny_sd3, stay=True)
    watched = hooks(tiny_sd3)

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


def test_beside_region_adaptive_only_evaluations_of_all_tokens_are_looked_at(
    accelerate, tiny_sd3, record_of, comfy_host, looks, reason
):
    both = comfy_host.run_node(
        "RAPID_RegionAdaptive",
        model=accelerate(tiny_sd3, stay=True),
        keep_ratio=0.5,
        preset="custom",
        warm_up=0.0,
        tail=0.0,
        refresh_interval=3,
        drift_threshold=0.0,
        metric="std",
        direction="low",
        starvation=0.3,
        inactive="predict",
        slope=0.0,
    )[0]
    assert torch.isfinite(sample(both, steps=STEPS, cfg=3.0)).all()
    full = [
        e.index
        for e in record_of(both).evaluations
        if e.modes == ("run",) and e.token_share == (1.0,)
    ]
    assert 1 < len(full) < 9 and {f.evaluation for _, f in looks} == set(full)
    why = reason("NO_FULL_COND")
    assert reason("HEADS_BLIND", kind="tpdm-sd3", why=why) in record_of(both).notes


def test_features_are_counted_and_die_with_the_run(
    accelerate, tiny_sd3, record_of, pack_module, monkeypatch
):
    module = pack_module("rapid_core.engine.tap")
    real = module.Features
    alive = []

    def features(*args):
        made = real(*args)
        alive.append(weakref.ref(made))
        return made

    monkeypatch.setattr(module, "Features", features)
    patched = accelerate(tiny_sd3)
    settings = {"steps": 4, "cfg": 3.0, "latent": empty_latent(2)}
    sample(patched, **settings)
    gc.collect()
    assert alive and not any(each() for each in alive)
    counted = record_of(patched)
    assert "features_memory" in {note.code for note in counted.notes}
    monkeypatch.setattr(module.FeatureStore, "bytes", 0)
    sample(patched, **settings)
    assert counted.bytes - record_of(patched).bytes == 2 * 4 * (SIDE**2 * 2 * HIDDEN + HIDDEN)


def test_heads_of_another_width_are_refused_when_the_node_runs(accelerate, tiny_sd3):
    with pytest.raises(ValueError, match="hidden = 256, trained on tiny; this model has 128"):
        accelerate(tiny_sd3, hidden=256)
