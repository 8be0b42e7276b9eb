"""RAPID Accelerate's `policy_file` in the real ComfyUI: found by the weights, named, or none."""

import os
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from benchmarks.dial.bench import Bench
from benchmarks.policy import accelerate as accelerated
from demo.run import graph_for
from rapid_core.quadrature.spacing import best_spaced
from rapid_testing.actors import METADATA
from rapid_testing.loras import with_lora
from rapid_testing.sampling import sample

STEPS = 12
SIGMAS = tuple(1 - i / STEPS for i in range(STEPS)) + (0.0,)
PLANS = {"early": "######......", "late": "#......#####", "even": "#.#.#.#.#.#.", "full": "#" * 12}


def simple(model, steps=STEPS):
    """The sigmas of a model's runs with the scheduler `simple`."""
    from comfy.samplers import calculate_sigmas

    return calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps).tolist()


@pytest.fixture
def folder(comfy_host, pack):
    """models/rapid_policies, empty before and after."""
    import folder_paths

    path = Path(folder_paths.get_folder_paths("rapid_policies")[0])
    path.mkdir(parents=True, exist_ok=True)

    def clear():
        for file in path.rglob("*.safetensors"):
            file.unlink()

    clear()
    yield path
    clear()


@pytest.fixture
def weights_of(pack_module):
    return pack_module("rapid_core.comfy.model_key").weights_of


@pytest.fixture
def saved(pack_module, folder):
    """saved(name, plan, age, **metadata): a schedule file for tiny FLUX models."""
    schedules = pack_module("rapid_core.policy_file.schedules")
    schedule = pack_module("rapid_core.techniques.step_skip.schedule").Schedule
    write = pack_module("rapid_core.policy_file.format").write

    def save(name="ours.safetensors", plan="early", age=0.0, sigmas=SIGMAS, **more):
        computed = tuple(sign == "#" for sign in PLANS.get(plan, plan))
        tensors = schedules.schedule_tensors([schedule(computed, tuple(sigmas))])
        path = write(
            folder / name, "schedule", {**METADATA, "budgets": [2.0], **more}, tensors
        ).path
        then = time.time() - age
        os.utime(path, (then, then))
        return path

    return save


@pytest.fixture
def headers(pack_module, monkeypatch):
    """Nothing is known of any file, and nothing was told."""
    module = pack_module("nodes.found_policy")
    monkeypatch.setattr(module, "HEADERS", module.Headers())
    return module


@pytest.fixture
def policy_of(pack_module, accelerate):
    """policy_of(model, **given): the policy that RAPID Accelerate puts on a model, and the codes and
    values of what it says."""
    chain_of = pack_module("rapid_core.comfy.chain").chain_of

    def policy_of(model, **given):
        chain = chain_of(accelerate(model, **given))
        return chain.policies[-1], {note.code: note.params for note in chain.notes}

    return policy_of


def test_without_a_file_of_the_model_nothing_changes(
    accelerate, policy_of, saved, headers, tiny_flux, record_of
):
    saved(weights="0" * 16)
    saved("silent.safetensors")
    plain, said = policy_of(tiny_flux)
    assert plain == policy_of(tiny_flux, policy_file="none")[0] and not said
    found, none = accelerate(tiny_flux), accelerate(tiny_flux, policy_file="none")
    assert torch.equal(sample(found, steps=STEPS), sample(none, steps=STEPS))
    assert not record_of(found).notes


def test_the_file_of_the_model_is_found_and_named(
    accelerate, policy_of, saved, headers, tiny_flux, record_of, weights_of
):
    saved(sigmas=simple(tiny_flux), weights=weights_of(tiny_flux))
    policy, said = policy_of(tiny_flux)
    assert policy.source == "ours.safetensors" and policy.found and not said
    patched = accelerate(tiny_flux)
    sample(patched, steps=STEPS)
    record = record_of(patched)
    assert record.policies[0]["source"] == "ours.safetensors"
    assert [note.code for note in record.notes] == ["policy_found"]
    assert "goes by ours.safetensors, a policy file" in record.text()
    assert policy_of(tiny_flux, policy_file="none")[0].source == ""


def test_it_is_the_model_whatever_is_patched_into_it_but_no_other(
    policy_of, saved, headers, load_tiny, weights_of, comfy_host
):
    ours, other = load_tiny("flux", seed=7), load_tiny("flux", seed=8)
    weights = weights_of(ours)
    assert weights == weights_of(load_tiny("flux", seed=7)) != weights_of(other)
    saved(weights=weights)
    sample(with_lora(ours), steps=2)
    assert policy_of(with_lora(ours))[0].source == "ours.safetensors"
    assert policy_of(ours)[0].source == "ours.safetensors"
    assert policy_of(other)[0].source == ""


def test_of_several_the_newest_is_taken(policy_of, saved, headers, tiny_flux, weights_of):
    weights = weights_of(tiny_flux)
    saved("a.safetensors", age=20, weights=weights)
    saved("b.safetensors", age=10, weights=weights)
    saved("c.safetensors", age=0, weights="0" * 16)
    assert policy_of(tiny_flux)[0].source == "b.safetensors"
    os.utime(saved("a.safetensors", weights=weights))
    assert policy_of(tiny_flux)[0].source == "a.safetensors"


@pytest.mark.parametrize("scheduler, steps", [("karras", STEPS), ("simple", 3 * STEPS)])
def test_where_the_file_does_not_carry_over_pictures_are_those_of_no_file(
    accelerate, saved, headers, tiny_flux, weights_of, record_of, scheduler, steps
):
    sigmas = simple(tiny_flux)
    best = "".join(".#"[on] for on in best_spaced(STEPS // 2, sigmas))
    saved(plan=best, sigmas=sigmas, weights=weights_of(tiny_flux))
    found, none = accelerate(tiny_flux), accelerate(tiny_flux, policy_file="none")
    pictures = [sample(m, steps=steps, scheduler=scheduler) for m in (found, none)]
    assert torch.equal(*pictures)
    (note,) = record_of(found).notes
    assert note.code == "schedule_unfit" and note.params == {"file": "ours.safetensors"}
    assert not record_of(none).notes


def test_of_several_that_is_gone_by_which_was_searched_on_the_runs_sigmas(
    accelerate, saved, headers, tiny_flux, weights_of, record_of
):
    weights = weights_of(tiny_flux)
    saved("fits.safetensors", age=10, sigmas=simple(tiny_flux), weights=weights)
    longer = simple(tiny_flux, STEPS + 4)
    saved("newest.safetensors", "#." * (STEPS // 2 + 2), sigmas=longer, weights=weights)
    patched = accelerate(tiny_flux)
    for steps, file in ((STEPS, "fits.safetensors"), (STEPS + 4, "newest.safetensors")):
        sample(patched, steps=steps)
        (note,) = record_of(patched).notes
        assert (note.code, note.params) == ("policy_found", {"file": file})


def test_learn_beside_a_file_says_that_it_does_nothing(
    policy_of, saved, headers, tiny_flux, weights_of
):
    saved(weights=weights_of(tiny_flux))
    said = policy_of(tiny_flux, learn=True)[1]
    assert said == {"learn_beside_file": {"file": "ours.safetensors"}}
    assert policy_of(tiny_flux, learn=True, policy_file="none")[1] == {}


def test_what_was_learned_is_no_policy_file_of_the_folder(
    policy_of, saved, headers, folder, tiny_flux, weights_of, pack_module
):
    path = saved(weights=weights_of(tiny_flux))
    (folder / "learned").mkdir(exist_ok=True)
    path.rename(folder / "learned" / path.name)
    assert policy_of(tiny_flux)[0].source == ""
    names = pack_module("nodes.load_policy").names()
    assert names and not [name for name in names if "learned" in name]


def test_load_policy_lists_nothing_learned_but_takes_it(comfy_host, saved, folder):
    path = saved()
    (folder / "learned").mkdir(exist_ok=True)
    path.rename(folder / "learned" / path.name)
    node = comfy_host.nodes.NODE_CLASS_MAPPINGS["RAPID_LoadPolicy"]
    name = os.path.join("learned", path.name)
    (slot,) = node.GET_SCHEMA().inputs
    assert name not in slot.options and node.validate_inputs(policy=name) is True
    assert comfy_host.run_node("RAPID_LoadPolicy", policy=name)[0].name == path.name


def test_a_damaged_file_is_passed_over_and_told_once(
    policy_of, saved, headers, folder, tiny_flux, weights_of
):
    weights = weights_of(tiny_flux)
    saved("good.safetensors", age=10, weights=weights)
    (folder / "cut.safetensors").write_bytes(b"no file")
    saved("wrong.safetensors", weights=weights, budgets=[3.0])  # its plan computes half
    policy, said = policy_of(tiny_flux)
    assert policy.source == "good.safetensors"
    assert set(said) == {"policy_file_damaged"} and not policy_of(tiny_flux)[1]


def test_a_file_of_another_family_or_a_folder_that_is_gone_raises_nothing(
    policy_of, saved, headers, folder, tiny_flux, weights_of, monkeypatch
):
    saved(weights=weights_of(tiny_flux), architecture="sd3")
    policy, said = policy_of(tiny_flux)
    assert policy.source == "" and set(said) == {"policy_file_damaged"}

    def fail():
        raise PermissionError("no")

    monkeypatch.setattr(headers, "names", fail)
    assert policy_of(tiny_flux)[0].source == ""


def test_a_folder_that_was_deleted_leaves_the_list_as_it_is_without_it(folder, saved, pack_module):
    names = pack_module("nodes.load_policy").names
    saved()
    assert "ours.safetensors" in names()
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir()
    folder.rmdir()
    assert "ours.safetensors" not in names()


def test_a_model_whose_weights_cannot_be_looked_at_has_no_file(
    saved, headers, tiny_flux, weights_of
):
    saved(weights=weights_of(tiny_flux))
    assert weights_of(object()) is None
    assert headers.found_policy(object(), 2.0) == (None, [])


def test_a_named_file_is_gone_by_and_checked(policy_of, saved, headers, tiny_flux, tiny_sd3):
    saved()
    policy, said = policy_of(tiny_flux, policy_file="ours.safetensors")
    assert policy.source == "ours.safetensors" and not said
    with pytest.raises(ValueError, match="ours.safetensors: architecture = 'flux'.*this model is"):
        policy_of(tiny_sd3, policy_file="ours.safetensors")
    saved("wrong.safetensors", budgets=[3.0])
    with pytest.raises(ValueError, match="wrong.safetensors: plan.0.computed computes 6 of 12"):
        policy_of(tiny_flux, policy_file="wrong.safetensors")
    with pytest.raises(ValueError, match="RAPID Accelerate: policy_file = 'no.safetensors' was"):
        policy_of(tiny_flux, policy_file="no.safetensors")


def test_the_socket_comes_first_and_all_files_before_what_is_learned(
    comfy_host, policy_of, saved, headers, tiny_flux, weights_of
):
    saved(weights=weights_of(tiny_flux), plan="early")
    saved("other.safetensors", plan="late")
    (policy, _) = comfy_host.run_node("RAPID_LoadPolicy", policy="other.safetensors")
    for file in ("auto", "none", "ours.safetensors"):
        taken, said = policy_of(tiny_flux, policy=policy, policy_file=file)
        assert taken.source == "other.safetensors" and not said
    assert not policy_of(tiny_flux, learn=True)[0].learn
    assert policy_of(tiny_flux, learn=True, policy_file="none")[0].learn


def test_at_speedup_1_no_file_skips_anything_whether_it_learns_or_not(
    accelerate, saved, headers, tiny_flux, record_of, weights_of, comfy_host
):
    saved(weights=weights_of(tiny_flux), budgets=[2.0])
    (policy, _) = comfy_host.run_node("RAPID_LoadPolicy", policy="ours.safetensors")
    for given in (dict(policy=policy), dict(policy_file="ours.safetensors")):
        for learn in (False, True):
            assert accelerate(tiny_flux, 1.0, learn=learn, **given) is tiny_flux
    saved(weights=weights_of(tiny_flux), budgets=[1.0], plan="full")
    learning = accelerate(tiny_flux, 1.0, learn=True)  # where auto finds one, too
    sample(learning, steps=STEPS)
    assert record_of(learning).strip(0) == "#" * STEPS
    assert not record_of(learning).policies[0]["source"]


def test_in_quality_and_off_no_file_is_looked_for(
    comfy_host, accelerate, policy_of, saved, headers, tiny_flux, weights_of, monkeypatch
):
    saved(weights=weights_of(tiny_flux))
    monkeypatch.setattr(headers, "names", lambda: pytest.fail("looked for"))
    assert policy_of(tiny_flux, mode="quality")[0].source == ""
    for given in ({"mode": "off"}, {"speedup": 1.0}):
        for file in ("auto", "ours.safetensors"):
            assert accelerate(tiny_flux, policy_file=file, **given) is tiny_flux
    with pytest.raises(
        ValueError, match="policy_file = 'ours.safetensors'; .* policy_file to auto"
    ):
        accelerate(tiny_flux, mode="quality", policy_file="ours.safetensors")
    node = comfy_host.nodes.NODE_CLASS_MAPPINGS[
        "RAPID_Accelerate"
    ]  # before anything is loaded, too
    refused = node.validate_inputs(mode="quality", policy_file="ours.safetensors")
    assert "policy_file = 'ours.safetensors'; " in refused
    assert node.validate_inputs(mode="speed", policy_file="ours.safetensors") is True


def test_the_other_settings_count_for_a_file_that_was_found(
    policy_of, saved, headers, tiny_flux, weights_of
):
    saved(weights=weights_of(tiny_flux))
    policy, _ = policy_of(tiny_flux, aim="best picture", even_so=True, speedup=3.0)
    assert policy.aim.value == "best picture" and not policy.safe and policy.speedup == 3.0


def test_a_later_node_takes_back_what_an_earlier_one_found(
    accelerate, policy_of, saved, headers, tiny_flux, weights_of
):
    saved(weights=weights_of(tiny_flux))
    policy, said = policy_of(accelerate(tiny_flux), policy_file="none")
    assert policy.source == "" and set(said) == {"set_twice"}


def test_the_node_runs_again_when_a_file_of_some_model_comes_or_changes(
    comfy_host, saved, headers, tiny_flux, weights_of
):
    node = comfy_host.nodes.NODE_CLASS_MAPPINGS["RAPID_Accelerate"]
    before = node.fingerprint_inputs()
    saved("silent.safetensors")
    assert node.fingerprint_inputs() == before
    path = saved(weights=weights_of(tiny_flux), age=10)
    came = node.fingerprint_inputs()
    assert came != before and came == node.fingerprint_inputs(policy_file="auto", mode="speed")
    os.utime(path)
    assert node.fingerprint_inputs() != came
    path.unlink()
    assert node.fingerprint_inputs() == before
    for given in ({"policy_file": "none"}, {"mode": "quality"}, {"mode": "off"}):
        assert node.fingerprint_inputs(**given) == given.get("policy_file", "auto")


@pytest.mark.parametrize("over_a_link", ["mode", "policy_file"])
def test_the_node_runs_again_for_a_file_where_a_choice_comes_over_a_link(
    comfy_host, saved, tiny_flux, weights_of, over_a_link
):
    """The host gives None for it; what comes may be auto, or the file's name."""
    node = comfy_host.nodes.NODE_CLASS_MAPPINGS["RAPID_Accelerate"]
    before = node.fingerprint_inputs(**{over_a_link: None})
    path = saved(weights=weights_of(tiny_flux), age=10)
    came = node.fingerprint_inputs(**{over_a_link: None})
    os.utime(path)
    changed = node.fingerprint_inputs(**{over_a_link: None})
    assert before != came != changed == node.fingerprint_inputs(**{over_a_link: None})


def test_load_policy_reads_a_file_again_whose_name_comes_over_a_link(comfy_host, saved):
    node = comfy_host.nodes.NODE_CLASS_MAPPINGS["RAPID_LoadPolicy"]
    path = saved(age=10)
    before = node.fingerprint_inputs(policy=None)
    os.utime(path)
    assert node.fingerprint_inputs(policy=None) != before


def test_a_name_that_is_not_there_is_refused_before_anything_runs(comfy_host, saved):
    node = comfy_host.nodes.NODE_CLASS_MAPPINGS["RAPID_Accelerate"]
    saved()
    for value in ("auto", "none", "ours.safetensors", None):
        assert node.validate_inputs(policy_file=value) is True
    said = node.validate_inputs(policy_file="no.safetensors")
    assert said.startswith("RAPID Accelerate: policy_file = 'no.safetensors' was given; there is ")
    (slot,) = (slot for slot in node.GET_SCHEMA().inputs if slot.id == "policy_file")
    assert slot.options[:3] == ["auto", "none", "ours.safetensors"]


@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_the_demo_models_find_their_own(comfy_host, demo_pack, policy_of, folder, headers, kind):
    (model,) = comfy_host.run_node(
        "UNETLoader", unet_name=f"{kind}.safetensors", weight_dtype="default"
    )
    assert policy_of(model)[0].source == f"demo-{kind}-gaps.safetensors"
    assert policy_of(model, policy_file="none")[0].source == ""


def test_benchmarks_of_no_policy_file_find_none(comfy_host, demo_pack, pack_module, headers):
    (model,) = comfy_host.run_node(
        "UNETLoader", unet_name="flux.safetensors", weight_dtype="default"
    )
    bench = Bench(comfy_host, Namespace())
    chain_of = pack_module("rapid_core.comfy.chain").chain_of
    for patch in (bench.node(), bench.node(speedup=3.0), accelerated(comfy_host, 2.0)):
        chain = chain_of(patch(model))
        assert chain.policies[0].source == "" and not chain.notes
    inputs = graph_for("flux", "flat red background", 0, "speed", "-")["accelerate"]["inputs"]
    assert inputs["policy_file"] == "none"


def test_two_hundred_files_are_looked_at_in_no_time(
    saved, folder, headers, tiny_flux, weights_of, pack_module
):
    data = saved("0.safetensors", weights="0" * 16).read_bytes()
    for i in range(1, 200):
        (folder / f"{i}.safetensors").write_bytes(data)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        assert headers.found_policy(tiny_flux, 2.0) == (None, [])
        seconds.append(time.perf_counter() - start)
    print([f"{1000 * s:.1f} ms" for s in seconds])
    assert seconds[0] < 0.5 and min(seconds[1:]) < 0.05  # an idle machine takes a tenth of that


def test_a_file_for_higher_speedups_is_not_gone_by(
    saved, policy_of, headers, tiny_flux, weights_of
):
    """It would compute as little as at its lowest."""
    saved(weights=weights_of(tiny_flux))
    for speedup, found in ((1.9, False), (2.0, True), (3.0, True)):
        policy, _ = policy_of(tiny_flux, speedup=speedup)
        assert bool(policy.source) == found == policy.found
