"""Training on a workflow: finding its parts, drawing as it does, and going on after being
killed."""

import json
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from devkit.base_folder import REPOSITORY, make_base_folder, remove_base_folder
from rapid_core.calibration.gaps import costs_of, latent_error
from rapid_core.calibration.search import clearly_better, key_of
from rapid_core.policy_file.format import read, write
from rapid_core.policy_file.policies import policy_of
from rapid_core.policy_file.schedules import schedules_of
from rapid_core.quadrature.spacing import Spacing, best_spaced
from rapid_core.techniques.step_skip.schedule import Schedule, SchedulePolicy
from rapid_testing.trainings import HEADS, PROMPTS, config_of, job_of, without_seconds
from training.gaps import Deviations
from training.graph import Graph, WorkflowError
from training.grpo import GroupBatch, Trainer, log_probability
from training.heads import method_of, train_heads
from training.host import attach, last_record
from training.methods import PRICE, RapidPlus
from training.references import reference
from training.schedules import train_schedules
from training.scorer import scorer_for


def workflow(steps=6, size=128, **changes):
    """The FLUX-like demo's example in small; changes: node id = node, None to leave it out."""
    path = REPOSITORY / "example_workflows" / "api" / "demo_flux.json"
    nodes = json.loads(path.read_text(encoding="utf-8"))
    nodes["latent"]["inputs"].update(width=size, height=size)
    nodes["sample"]["inputs"].update(steps=steps)
    return {k: v for k, v in {**nodes, **changes}.items() if v is not None}


@pytest.fixture(scope="module")
def host(comfy_host, pack, demo_pack):
    """The test process's ComfyUI with all nodes that workflows here have."""
    for name in (
        "nodes_flux.py",
        "nodes_sd3.py",
        "nodes_custom_sampler.py",
        "nodes_model_advanced.py",
    ):
        comfy_host.load_core_nodes(name)
    return comfy_host


@pytest.fixture(scope="module")
def graph(host):
    return Graph(workflow())


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


CUSTOM = {
    "sample": node(
        "SamplerCustomAdvanced",
        noise=["noise", 0],
        guider=["guider", 0],
        sampler=["how", 0],
        sigmas=["levels", 0],
        latent_image=["latent", 0],
    ),
    "noise": node("RandomNoise", noise_seed=0),
    "guider": node("BasicGuider", model=["accelerate", 0], conditioning=["guidance", 0]),
    "how": node("KSamplerSelect", sampler_name="euler"),
    "levels": node("BasicScheduler", model=["model", 0], scheduler="simple", steps=6, denoise=1.0),
}


@pytest.mark.parametrize("changes", [{}, CUSTOM])
def test_a_workflow_draws_what_it_draws_in_the_host(host, changes):
    """Without this pack's node in it, and with prompt and seed of our own."""
    graph = Graph(workflow(**changes))
    site = graph.site
    assert (
        site.sampler == "sample"
        and site.model == ("model", 0)
        and site.texts == (("positive", "text"),)
    )
    found = graph.sample(PROMPTS[1], 5)
    run = host.run_node
    (model,) = run("UNETLoader", unet_name="flux.safetensors", weight_dtype="default")
    (positive,) = run("RAPIDDemoPrompt", text=PROMPTS[1], model="flux")
    strength = workflow()["guidance"]["inputs"]["guidance"]
    (positive,) = run("FluxGuidance", conditioning=positive, guidance=strength)
    (negative,) = run("RAPIDDemoPrompt", text="", model="flux")
    (latent,) = run("EmptySD3LatentImage", width=128, height=128, batch_size=1)
    (wanted,) = run(
        "KSampler",
        model=model,
        positive=positive,
        negative=negative,
        latent_image=latent,
        seed=5,
        steps=6,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
    )
    assert torch.allclose(found, wanted["samples"], atol=1e-5)
    assert graph.picture(found).shape == (1, 3, 128, 128)
    assert graph.model_name == "flux.safetensors"


def test_a_batch_begins_with_the_same_noise(graph):
    found = graph.sample(PROMPTS[0], 1, batch=3)
    assert (found - found[:1]).abs().max() < 1e-5 * found.abs().max()
    assert (found[:1] - graph.sample(PROMPTS[0], 1)).abs().max() < 1e-4 * found.abs().max()
    assert not torch.allclose(found[:1], graph.sample(PROMPTS[0], 2))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"sample": None}, "one sampler node is needed"),
        (
            {"second": workflow()["sample"]},
            r"choose with --sampler ID; in this workflow: sample \(KSampler\), second",
        ),
        ({"positive": node("LoadConditioning", name="kept")}, "no prompt text found"),
    ],
)
def test_workflows_that_do_not_say_enough_are_refused(host, changes, said):
    with pytest.raises(WorkflowError, match=said):
        Graph(workflow(**changes))


def test_the_right_one_of_several_samplers_can_be_named(host):
    both = workflow(second=workflow()["sample"])
    assert Graph(both, sampler="second").site.sampler == "second"
    with pytest.raises(WorkflowError, match="no sampler node third"):
        Graph(both, sampler="third")
    assert Graph(workflow(), texts=["negative.text"]).site.texts == (("negative", "text"),)
    with pytest.raises(WorkflowError, match="Export"):
        Graph({"nodes": []})


SIDES = node(
    "ControlNetApplyAdvanced", positive=["guidance", 0], negative=["negative", 0], strength=1.0
)


@pytest.mark.parametrize(
    "changes",
    [
        {"negative": node("ConditioningZeroOut", conditioning=["positive", 0])},
        {
            "sides": SIDES,
            "sample": node(
                "KSampler",
                **{
                    **workflow()["sample"]["inputs"],
                    "positive": ["sides", 0],
                    "negative": ["sides", 1],
                },
            ),
        },
        {
            "positive": node(
                "CLIPTextEncodeLumina2",
                clip=["clip", 0],
                system_prompt="superior",
                user_prompt="a cat",
            ),
            "clip": node("CLIPLoader", clip_name="-"),
        },
        {
            "positive": node(
                "CLIPTextEncodeFlux", clip=["clip", 0], clip_l=["words", 0], t5xxl="-", guidance=3.5
            ),
            "clip": node("CLIPLoader", clip_name="-"),
            "words": node("PrimitiveStringMultiline", value="a cat"),
        },
    ],
)
def test_the_prompt_is_found_in_graphs_that_people_have(host, changes):
    """Its inputs may be connected, its negative side made from it, or both sides come out of one
    node."""
    texts = Graph(workflow(**changes)).site.texts
    names = (
        {"clip_l", "t5xxl"}
        if "words" in changes
        else {"user_prompt"}
        if "clip" in changes
        else {"text"}
    )
    assert {name for _, name in texts} == names and {i for i, _ in texts} == {"positive"}


def test_this_packs_nodes_are_passed_by_wherever_they_stand_and_loaders_run_once(host, monkeypatch):
    changed = workflow(shift=node("ModelSamplingSD3", model=["accelerate", 0], shift=1.5))
    changed["sample"]["inputs"]["model"] = ["shift", 0]
    ran = []
    for one in changed.values():
        cls = host.nodes.NODE_CLASS_MAPPINGS[one["class_type"]]
        original = getattr(cls, cls.FUNCTION)
        if not hasattr(cls, "GET_SCHEMA"):  # nodes of the first kind

            def counted(self, *args, kind=one["class_type"], original=original, **inputs):
                ran.append(kind)
                return original(self, *args, **inputs)

            monkeypatch.setattr(cls, cls.FUNCTION, counted)
    graph = Graph(changed)
    latents = [graph.sample(PROMPTS[0], seed) for seed in (0, 1)]
    assert graph.site.model == ("shift", 0) and graph.model_name == "flux.safetensors"
    counts = [ran.count(kind) for kind in ("UNETLoader", "ModelSamplingSD3", "KSampler")]
    assert counts == [1, 1, 2]
    for _ in range(2):  # a picture in between does not make it forget what it has loaded
        graph.picture(latents[0])
        graph.sample(PROMPTS[0], 0)
    assert ran.count("UNETLoader") == ran.count("VAELoader") == 1 and ran.count("KSampler") == 4
    assert not any(kind.startswith("RAPID_") for kind in ran)


def test_texts_that_are_not_there_and_second_stages_are_refused(host):
    for text in ("sample.text", "nobody.text", "positive"):
        with pytest.raises(WorkflowError, match="the workflow has no such input; give ID.NAME"):
            Graph(workflow(), texts=[text])
    second = workflow()["sample"]
    second["inputs"]["latent_image"] = ["sample", 0]
    with pytest.raises(
        WorkflowError, match="the latent of sampler second comes from sampler sample"
    ):
        Graph(workflow(second=second), sampler="second")


def test_a_state_folder_belongs_to_one_workflow_and_its_settings(graph, host, done, tmp_path):
    done(tmp_path, train)
    with pytest.raises(ValueError, match="training with other target"):
        train(graph, tmp_path, target="solution")
    with pytest.raises(ValueError, match="training with other workflow and prompts"):
        train(Graph(workflow(steps=7)), tmp_path)


def test_a_reference_is_drawn_once_and_near_the_solution_when_refined(graph, tmp_path):
    dense = reference(graph, PROMPTS[0], 3, tmp_path)
    assert torch.equal(dense.latent, graph.sample(PROMPTS[0], 3)) and len(dense.sigmas) == 7
    fine, finer = (reference(graph, PROMPTS[0], 3, tmp_path, refine) for refine in (4, 8))
    assert (fine.latent - finer.latent).norm() < 0.5 * (dense.latent - finer.latent).norm()
    files = sorted(path.stat().st_mtime_ns for path in tmp_path.iterdir())
    again = reference(graph, PROMPTS[0], 3, tmp_path)
    assert torch.equal(again.latent, dense.latent)
    assert files == sorted(path.stat().st_mtime_ns for path in tmp_path.iterdir())


def test_schedules_need_euler(host, tmp_path):
    changed = workflow()
    changed["sample"]["inputs"]["sampler_name"] = "heun"
    with pytest.raises(ValueError, match="the sampler euler is needed .* samples with heun"):
        reference(Graph(changed), PROMPTS[0], 0, tmp_path)


class Killed(BaseException):
    """The process is gone."""


def train(graph, folder, **changes):
    flags = "--kind schedule --calibration 2 --held-out 2 --speedups 2 --plans 4"
    job = job_of(graph, folder, flags)
    return train_schedules(replace(job, config=replace(job.config, **changes)))


LEARN = (
    "--calibration 2 --held-out 1 --speedups 1.5 2 --plans 3 --longest-gap 2 --group 3 "
    "--lr 0.01 --features judge --advantages values --discriminator-warm-up 3 --discount 0.9 "
    "--sparse-backend gather --width 16 --iterations 3 --omega 0"
)


def learn(graph, folder, kind="rapid+", groups=2, **changes):
    leap = "--mode average --heads pace" if kind == "rapid+" else "--heads step"
    heads = f"--kind {kind} {leap} cache sparse --prompts-per-update {groups}"
    job = job_of(graph, folder, f"{LEARN} {heads}")
    return train_heads(replace(job, config=replace(job.config, **changes)))


def learn_beside_a_discriminator(graph, folder):
    return learn(graph, folder, "rapid3", 1, reward=("ssim", "judge:0.5"), omega=1.0)


@pytest.fixture(scope="module")
def done(graph, tmp_path_factory):
    """done(folder, train): what a training comes to that is over; a copy of its state is in the
    folder."""
    kept = {}

    def copied(folder, train):
        if train not in kept:
            kept[train] = tmp_path_factory.mktemp("done")
            train(graph, kept[train])
        shutil.copytree(kept[train], folder, dirs_exist_ok=True)
        return train(graph, folder)

    return copied


def discriminator(folder):
    """All tensors of a discriminator's state, by name."""
    state = torch.load(folder / "policy" / "checkpoint.pt", weights_only=True)["scorer"]
    moments = {
        f"{i}.{name}": value
        for i, kept in state["optimiser"]["state"].items()
        for name, value in kept.items()
    }
    return {**state["adapter"], **moments, "full": state["full"], "drawn": state["drawn"]}


@pytest.mark.main_host
@pytest.mark.parametrize("train", [train, learn, learn_beside_a_discriminator])
def test_killed_at_any_moment_it_comes_to_the_same_end(graph, done, tmp_path, monkeypatch, train):
    whole, table = done(tmp_path / "whole", train)
    assert whole.metadata["architecture"] == "flux" and "dB" in table
    shipped = read(REPOSITORY / "policies" / "demo-flux-gaps.safetensors")
    assert whole.metadata["weights"] == shipped.metadata["weights"]
    sample, left = Graph.sample, [0]

    def mortal(self, *args, **named):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return sample(self, *args, **named)

    monkeypatch.setattr(Graph, "sample", mortal)
    kills = 0
    while True:
        left[0] = 3 + kills % 2
        try:
            found, _ = train(graph, tmp_path / "killed")
            break
        except Killed:
            kills += 1
    assert kills >= 3
    assert without_seconds(found.metadata) == without_seconds(whole.metadata)
    assert found.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(found.tensors[name], whole.tensors[name]) for name in whole.tensors)
    assert (
        len(
            {
                without_seconds((tmp_path / end / "policy.md").read_text())
                for end in ("killed", "whole")
            }
        )
        == 1
    )
    if train is learn_beside_a_discriminator:
        ours, theirs = discriminator(tmp_path / "killed"), discriminator(tmp_path / "whole")
        assert ours.keys() == theirs.keys() and all(
            torch.equal(ours[name], theirs[name]) for name in theirs
        )


def test_a_discriminator_learns_beside_the_heads_and_the_policy_says_so(graph, done, tmp_path):
    file, _ = done(tmp_path, learn_beside_a_discriminator)
    reward = file.metadata["reward"]
    assert reward.startswith(
        "(q + 1 d) / 2; q: 0.667 max(0, SSIM to the reference picture) + 0.333 mean"
    )
    assert file.metadata["reward"].endswith(
        "warmed up for 3 steps, discounted by 0.9 an equivalent step"
    )
    lines = [
        json.loads(line)
        for line in (tmp_path / "policy" / "scalars.jsonl").read_text().splitlines()
    ]
    names = ("reward/ssim", "reward/judge", "reward/discriminator", "discriminator/accuracy")
    assert len(lines) == 3 and all(0 <= line[name] <= 1 for line in lines for name in names)
    assert all(line["discriminator/loss"] > 0 for line in lines)
    kept = discriminator(tmp_path)
    assert (
        len(kept["drawn"]) == 3 * (3 + 3) and len(kept["full"]) == 3 + 3
    )  # of the warm-up and of updates
    with pytest.raises(ValueError, match="training with other reward"):
        learn(graph, tmp_path, "rapid3", 1, reward=("ssim", "judge:0.5"), omega=0.5)


def test_rewards_of_pictures_need_a_decoder_and_say_so_before_anything_is_drawn(
    host, tmp_path, monkeypatch
):
    monkeypatch.setattr(Graph, "sample", lambda *args, **named: pytest.fail("something was drawn"))
    blind = Graph(workflow(decode=None))
    for reward, omega in ((("ssim",), 0.0), (("psnr",), 1.0)):
        with pytest.raises(WorkflowError, match="no VAE Decode follows sampler sample"):
            learn(blind, tmp_path, "rapid3", 1, reward=reward, omega=omega)
    with pytest.raises(ValueError, match="reward imagereward needs the package image-reward"):
        learn(blind, tmp_path, "rapid3", 1, reward=("imagereward",))
    assert list(tmp_path.iterdir()) == []


def test_the_policy_runs_in_accelerate_and_is_no_worse_than_none(
    graph, host, done, tmp_path, pack_module
):
    """On the prompts it was searched on, at least."""
    file, _ = done(tmp_path, train)
    read = pack_module("rapid_core.policy_file.format").read
    policy = read(file.path)
    run = host.run_node
    errors = []
    for given in ({"policy": policy}, {}):

        def patch(model, given=given):
            return run("RAPID_Accelerate", model=model, speedup=2.0, even_so=True, **given)[0]

        errors.append(
            sum(
                (graph.sample(p, i, patch=patch) - graph.sample(p, i)).norm()
                for i, p in enumerate(PROMPTS[:2])
            )
        )
    assert 0 < errors[0] <= errors[1]


def trainer_of(graph, folder, flags):
    """A trainer on all prompts but the last, before its first update."""
    job = job_of(graph, folder, flags)
    scorer = scorer_for(job)
    job = replace(job, prompts=PROMPTS[:3])
    return Trainer(job, method_of(job), scorer, PROMPTS[3:])


class Named:
    """A node of the first kind that wants to know its own id."""

    RETURN_TYPES = ("FLOATS", "STRING")
    FUNCTION = "go"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"numbers": ("FLOATS",)},
            "hidden": {"node": "UNIQUE_ID", "graph": "PROMPT"},
        }

    def go(self, numbers, node, graph):
        return numbers, f"{node} {graph['sample']['class_type']}"


class Listed:
    """A node that gives a list, for each of which the next node is called."""

    RETURN_TYPES = ("FLOATS",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "go"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def go(self):
        return ([1.0, 2.0],)


def test_nodes_are_called_as_the_host_does(host, monkeypatch):
    """Hidden inputs are given, wrapped lists unwrapped, dynamic inputs nested, lists called for one
    by one; unknown inputs are left out."""
    from comfy_api.latest import io

    class Sized(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            options = [io.DynamicCombo.Option("by hand", [io.Int.Input("width")])]
            return io.Schema(
                node_id="Sized",
                inputs=[io.DynamicCombo.Input("size", options=options)],
                outputs=[io.Int.Output(), io.String.Output()],
                hidden=[io.Hidden.unique_id],
            )

        @classmethod
        def execute(cls, size):
            return io.NodeOutput(size["width"], cls.hidden.unique_id)

    for cls in (Named, Listed, Sized):
        monkeypatch.setitem(host.nodes.NODE_CLASS_MAPPINGS, cls.__name__, cls)

    def outputs(one):
        return [Graph(workflow(one=one))._run(("one", i), {}, {}) for i in (0, 1)]

    numbers = {"__value__": [1.0, 2.0]}
    assert outputs(node("Named", numbers=numbers, unknown=3)) == [[1.0, 2.0], "one KSampler"]
    sized = node("Sized", size="by hand", **{"size.width": 4})
    assert outputs(sized) == [4, "one"]
    with pytest.raises(WorkflowError, match="one .Listed. gives 2 values where one is needed"):
        Graph(workflow(one=node("Listed")))._run(("one", 0), {}, {})


def test_what_a_node_raises_comes_out_as_it_is_and_nodes_that_are_missing_are_named(host):
    graph = Graph(workflow())

    def broken(model):
        raise ZeroDivisionError("in a patch")

    with pytest.raises(ZeroDivisionError, match="in a patch"):
        graph.sample(PROMPTS[0], 0, patch=broken)
    assert torch.isfinite(graph.sample(PROMPTS[0], 0)).all()  # and it goes on afterwards
    unknown = Graph(workflow(negative=node("OfAnotherPack", text="")))
    with pytest.raises(ValueError, match="node OfAnotherPack of the workflow is not installed"):
        unknown.sample(PROMPTS[0], 0)


def scalars(folder):
    return [
        json.loads(line) for line in (folder / "policy" / "scalars.jsonl").read_text().splitlines()
    ]


def rewritten(file, path, tensors, **changes):
    """A schedule file with other tensors in it."""
    about = {
        name: value
        for name, value in file.metadata.items()
        if name not in ("format", "version", "kind")
    }
    return write(path, "schedule", {**about, **changes}, {**file.tensors, **tensors}).path


def ladder_of(file, path, **changes):
    """A schedule file with a denser plan beside its own at 2x; changes: of metadata."""
    denser = {
        "plan.0.computed": torch.tensor([1, 1, 0, 1, 1, 0], dtype=torch.uint8),
        "plan.1.computed": file.tensors["plan.0.computed"],
    }
    return rewritten(file, path, denser, **{"budgets": [1.5, 2.0], **changes})


def test_heads_that_learned_nothing_are_the_schedule_that_they_begin_with(graph, done, tmp_path):
    file, _ = done(tmp_path, train)
    ladder = ladder_of(file, tmp_path / "ladder.safetensors")
    flags = f"{HEADS.replace('1.5 2', '2')} --start {ladder}"
    trainer = trainer_of(graph, tmp_path / "heads", flags)
    target = trainer.reference(0)
    policy = SchedulePolicy(speedup=2.0, schedule=schedules_of(file)[0], safe=False)
    alone = graph.sample(target.prompt, target.seed, attach(graph.model, policy))
    assert torch.equal(trainer.draw(target, 2.0)[0], alone.cpu())
    # What was learned since is not in what is compared with.
    trainer.heads.heads["pace"].fc2.bias.data.copy_(torch.tensor([0.0, 0.0, 0.0, 20.0, 0.0]))
    assert not torch.equal(trainer.draw(target, 2.0)[0], alone.cpu())
    assert torch.equal(trainer.draw(target, 2.0, heads=trainer.fresh)[0], alone.cpu())


def test_a_run_with_a_gap_computes_only_what_follows_it(graph, monkeypatch, tmp_path):
    """What comes before is answered from the full run, and the same latent comes out."""
    network = graph.model.model.diffusion_model
    forward, calls = network.forward, []

    def counted(*args, **named):
        calls.append(1)
        return forward(*args, **named)

    sigmas = reference(graph, PROMPTS[0], 3, tmp_path).sigmas
    monkeypatch.setattr(network, "forward", counted)
    measured = Deviations(graph, PROMPTS[0], 3, sigmas, tmp_path / "gaps.json")
    found = measured((2, 4))
    assert len(calls) == 6 + 2 and 0 < found < 1
    assert measured((2, 4)) == found and len(calls) == 8
    measured((0, 2))
    assert len(calls) == 8 + 4
    again = Deviations(graph, PROMPTS[0], 3, sigmas, tmp_path / "gaps.json")
    assert again((2, 4)) == found and len(calls) == 12
    policy = SchedulePolicy(
        schedule=Schedule((True, True, True, False, True, True), sigmas), safe=False
    )
    plain = graph.sample(PROMPTS[0], 3, attach(graph.model, policy))
    assert latent_error(plain, graph.sample(PROMPTS[0], 3)) == pytest.approx(found, rel=1e-3)


def test_without_plans_the_path_is_taken_where_it_is_clearly_better_than_the_default(
    graph, done, tmp_path
):
    file, _ = done(tmp_path, train)
    path, text = train(graph, tmp_path / "path", plans=0)
    costs = [json.loads(one.read_text()) for one in sorted((tmp_path / "policy/gaps").iterdir())]
    tables = [{tuple(map(int, k.split(","))): v for k, v in one.items()} for one in costs]
    (schedule,) = schedules_of(path)
    sigmas = schedule.sigmas
    assert len(tables) == 2 and schedule.gram is None
    both = [Spacing(sigmas, costs_of(tables, sigmas)).best(3), best_spaced(3, sigmas)]
    scores = json.loads((tmp_path / "path" / "policy" / "schedules-2.json").read_text())
    assert set(scores) == {key_of(computed) for computed in both}
    ours, others = (scores[key_of(computed)] for computed in both)
    assert schedule.computed == both[0 if clearly_better(ours, others) else 1]
    tried = json.loads((tmp_path / "policy" / "schedules-2.json").read_text())
    assert set(scores) <= set(tried) and len(tried) <= 5
    assert "without a policy file" in text and not any("gram" in name for name in file.tensors)


def test_a_schedule_that_does_not_go_with_the_training_is_refused(graph, host, done, tmp_path):
    file, _ = done(tmp_path, train)
    with pytest.raises(ValueError, match="budgets = 2; --speedups must be some of them"):
        trainer_of(graph, tmp_path / "a", f"{HEADS} --start {file.path}")
    start, ladder = (
        f"{HEADS.replace('1.5 2', '2')} --start",
        ladder_of(file, tmp_path / "ladder.safetensors"),
    )
    with pytest.raises(
        ValueError,
        match="the pace head chooses among the schedules of a file, and here there is one",
    ):
        trainer_of(graph, tmp_path / "a", f"{start} {file.path}")
    larger = ladder_of(file, tmp_path / "larger.safetensors", hidden=3072)
    with pytest.raises(ValueError, match="hidden = 3072, trained on .*; this model has 256"):
        trainer_of(graph, tmp_path / "a", f"{start} {larger}")
    with pytest.raises(ValueError, match="searched on other sigmas"):
        trainer_of(Graph(workflow(steps=7)), tmp_path / "b", f"{start} {ladder}")
    learned, _ = done(tmp_path / "other", learn)
    with pytest.raises(ValueError, match="kind = 'heads'; --start is a schedule"):
        trainer_of(graph, tmp_path / "c", f"{start} {learned.path}")
    other = ladder_of(file, tmp_path / "d.safetensors", architecture="sd3")
    with pytest.raises(ValueError, match="architecture = 'sd3'"):
        trainer_of(graph, tmp_path / "d", f"{start} {other}")


def test_state_of_another_training_is_not_gone_on_with(graph, done, tmp_path):
    done(tmp_path, learn)
    with pytest.raises(ValueError, match="after 3 updates, more than --iterations 2"):
        learn(graph, tmp_path, iterations=2)
    kept = (tmp_path / "policy" / "settings.json").read_text()
    (tmp_path / "policy" / "settings.json").write_text(kept.replace('"plan": "', '"plan": "0'))
    with pytest.raises(ValueError, match="a training with other plan;"):
        learn(graph, tmp_path)


def test_schedules_differ_by_what_their_weights_are_fitted_to_as_well(graph, done, tmp_path):
    """Of older files; those that are written now have none."""
    file, _ = done(tmp_path, train)
    file = read(ladder_of(file, tmp_path / "ladder.safetensors"))
    gram = torch.eye(6, dtype=torch.float64)
    fitted = {"gram.products": gram, "gram.means": gram.clone()}
    other = read(rewritten(file, tmp_path / "other.safetensors", fitted))
    config = config_of(f"{HEADS.replace('1.5 2', '2')} --start {file.path}")
    digests = [RapidPlus(config, one).digest for one in (file, read(file.path), other)]
    assert digests[0] == digests[1] != digests[2] and schedules_of(file) == schedules_of(other)


@pytest.mark.parametrize("kind", ["rapid3", "rapid+"])
def test_trained_heads_run_in_accelerate(graph, host, done, tmp_path, pack_module, kind):
    file, table = done(tmp_path, learn) if kind == "rapid+" else learn(graph, tmp_path, kind)
    assert file.kind == "heads" and file.metadata["method"] == kind and "equivalent steps" in table
    if kind == "rapid+":
        plan = read(tmp_path / "policy-plan.safetensors")
        assert plan.kind == "schedule" and torch.equal(
            plan.tensors["plan.1.computed"], file.tensors["plan.1.computed"]
        )
        silent = [
            line["silent/2"] for line in scalars(tmp_path)
        ]  # so few rollouts do not move the price
        assert (
            file.metadata["mode"] == "average"
            and silent[-1] > 0
            and scalars(tmp_path)[-1]["price/2"] == PRICE
        )
    policy = pack_module("rapid_core.policy_file.format").read(file.path)

    def patch(model):
        return host.run_node("RAPID_Accelerate", model=model, speedup=2.0, policy=policy)[0]

    found = graph.sample(PROMPTS[0], 0, patch=patch)
    assert torch.isfinite(found).all() and not torch.equal(found, graph.sample(PROMPTS[0], 0))
    # As in training, and with gaps corrected where a schedule without weights is gone by.
    model = attach(graph.model, policy_of(read(file.path), 2.0))
    assert torch.equal(found, graph.sample(PROMPTS[0], 0, model))
    assert (last_record(model).closeness[0] is not None) == (kind == "rapid+")


def leaves(node, seen):
    """Tensors that a gradient comes to from a node of autograd's graph."""
    if node is None or node in seen:
        return []
    seen.add(node)
    own = [node.variable] if hasattr(node, "variable") else []
    return own + [leaf for following, _ in node.next_functions for leaf in leaves(following, seen)]


def test_no_gradient_reaches_the_transformer(graph, tmp_path):
    """Rollouts leave no graph behind; what an update differentiates ends at the heads, and it
    changes only them."""
    trainer = trainer_of(graph, tmp_path, HEADS)
    network = graph.model.model.diffusion_model
    weights = {name: value.to("cpu", copy=True) for name, value in network.state_dict().items()}
    heads = {name: value.clone() for name, value in trainer.heads.state_dict().items()}
    rollouts = (trainer.rollout(number)[0] for number in range(9))
    # The first whose images are not all worth the same, so that there is something to learn.
    group = next(group for group in rollouts if GroupBatch.of(group, ranks=True) is not None)
    steps = [step for trajectory in group for step in trajectory.steps]
    kept = [t.log_p for t in group]
    kept += [x for step in steps for x in (*step.inputs.values(), step.numbers, step.pooled)]
    assert len(steps) > 3 and not any(x.requires_grad or x.grad_fn is not None for x in kept)
    own = {id(p) for p in trainer.heads.parameters()}
    assert {
        id(leaf)
        for leaf in leaves(log_probability(trainer.heads, steps).log_p.sum().grad_fn, set())
    } == own
    assert trainer.learner.update([group])["dropped_groups"] == 0
    assert all(p.grad is None for p in network.parameters())
    assert all(
        torch.equal(value.cpu(), weights[name]) for name, value in network.state_dict().items()
    )
    assert any(
        not torch.equal(value, heads[name]) for name, value in trainer.heads.state_dict().items()
    )


@pytest.mark.parametrize("kind, said", [("schedule", "| 2 | 3 of 6 |"), ("rapid3", "| 1 | ")])
def test_the_command_trains_in_a_comfyui_of_its_own_and_quickly(comfy_host, tmp_path, kind, said):
    from devkit.device import has_gpu
    from devkit.server import child_environment, host_arguments

    (tmp_path / "graph.json").write_text(json.dumps(workflow()))
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    base = tmp_path / "base"
    make_base_folder(base)
    arguments = shlex.join(host_arguments(base, has_gpu(Path(sys.executable))))
    command = [
        sys.executable,
        str(REPOSITORY / "training" / "train_policy.py"),
        "--quick",
        "--comfyui",
        str(comfy_host.tree),
        "--workflow",
        str(tmp_path / "graph.json"),
        "--prompts",
        str(tmp_path / "prompts.txt"),
        "--out",
        "ours",
        "--state",
        str(tmp_path / "state"),
        "--policies",
        str(tmp_path / "policies"),
        f"--host-arguments={arguments}",
        "--kind",
        kind,
    ]
    began = time.monotonic()
    done = subprocess.run(
        command, capture_output=True, text=True, env=child_environment(1), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert said in done.stdout and (tmp_path / "policies" / "ours.safetensors").is_file()
    assert time.monotonic() - began < 180
    if kind == "rapid3":  # 64 tokens are one tile: nothing to choose
        assert "the sparse head has nothing to choose on this machine" in done.stdout
        assert json.loads(read(tmp_path / "policies" / "ours.safetensors").metadata["heads"]) == [
            "step",
            "cache",
        ]
        assert list((tmp_path / "state" / "tensorboard" / "warm_up").iterdir())
    remove_base_folder(base)
