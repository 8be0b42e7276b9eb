"""Policy files: what is written is read back, and everything that is wrong is named."""

import itertools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from rapid_core.policy_file.format import FORMAT, PolicyError, read, write
from rapid_core.policy_file.policies import (
    check_family,
    check_model,
    plan_tensors,
    plans_of,
    policy_of,
    threshold_of,
)
from rapid_core.quadrature.gram import Gram
from rapid_core.techniques.step_skip.schedule import Plan, SchedulePolicy, evenly_spaced
from rapid_core.techniques.step_skip.threshold import ThresholdPolicy
from rapid_core.types import Mode
from rapid_testing.actors import METADATA, marks_of, text
from rapid_testing.runs import bending, products_of, weights_by_hand

SCHEDULE = tuple(1 - i / 8 for i in range(9))
GRAM = Gram.of(products_of(bending(SCHEDULE, 4)), 8)


def plan(count):
    return Plan(evenly_spaced(count, 8), SCHEDULE, GRAM)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "policy.safetensors"


@pytest.fixture
def schedule(path):
    return write(path, "schedule", METADATA, plan_tensors([plan(4), plan(2)]))


def test_a_schedule_is_read_as_it_was_written(schedule):
    found = plans_of(schedule)
    assert found == [plan(4), plan(2)]
    assert all(
        torch.equal(getattr(p.gram, name), getattr(GRAM, name))
        for p in found
        for name in ("products", "means")
    )
    assert schedule.budgets == (2.0, 4.0)
    assert schedule.metadata["reward"] == "psnr" and schedule.base_model == "demo flux"


def test_the_plan_of_a_budget_runs_with_weights_fitted_to_its_marks(schedule):
    actions, actor = marks_of(policy_of(schedule, 2.0), 8)
    assert (
        text(actions) == "".join("#" if on else "." for on in plan(4).computed) and not actor.notes
    )
    assert [a.weights for a in actions] == weights_by_hand(plan(4))


def test_weights_are_fitted_to_what_is_computed_whatever_that_is(schedule):
    """Between budgets, where the plan is thinned out; and where others had a step computed that was
    to be left out."""
    fewer, _ = marks_of(policy_of(schedule, 2.5), 8)
    on = tuple(a.level is Mode.RUN for a in fewer)
    assert sum(on) == 3 and [a.weights for a in fewer] == weights_by_hand(Plan(on, SCHEDULE, GRAM))
    forced, _ = marks_of(policy_of(schedule, 2.0), 8, forced=(1,))
    on = tuple(a.level is Mode.RUN or i == 1 for i, a in enumerate(forced))
    assert [a.weights for a in forced][2:] == weights_by_hand(Plan(on, SCHEDULE, GRAM))[2:]


def test_a_plan_without_inner_products_leaves_weights_to_adams_bashforth(path):
    bare = [Plan(evenly_spaced(n, 8), SCHEDULE) for n in (4, 2)]
    policy = policy_of(write(path, "schedule", METADATA, plan_tensors(bare)), 2.0)
    assert policy.plan.gram is None
    plain = marks_of(SchedulePolicy(2.0), 8)[0]
    assert [a.weights for a in marks_of(policy, 8)[0]] == [a.weights for a in plain]


def test_on_other_steps_or_samplers_the_plan_is_moved_and_says_so(schedule):
    policy = policy_of(schedule, 2.0)
    for steps, euler in ((16, True), (8, False)):
        actions, actor = marks_of(policy, steps, euler=euler)
        assert (
            text(actions).count("#") == steps // 2 and "moved to this run's steps" in actor.notes[0]
        )
        assert not any(len(a.weights) > 2 for a in actions if a.weights)
        assert max(map(len, text(actions).split("#"))) <= 2 and "##" not in text(actions)


def test_below_the_lowest_budget_its_plan_is_taken_whatever_the_steps(schedule):
    for steps in (8, 16, 20):
        assert text(marks_of(policy_of(schedule, 1.3), steps)[0]).count("#") == steps // 2


def test_between_budgets_the_nearest_plan_is_thinned_out(schedule):
    policy = policy_of(schedule, 2.5)
    assert isinstance(policy, SchedulePolicy) and policy.plan == plan(4)
    assert text(marks_of(policy, 8)[0]).count("#") == 3


def test_thresholds_are_interpolated(path):
    file = write(path, "threshold", METADATA, {"thresholds": torch.tensor([0.1, 0.4])})
    assert threshold_of(file, 1.5) == pytest.approx(0.1) and threshold_of(
        file, 4.0
    ) == pytest.approx(0.4)
    assert threshold_of(file, 3.0) == pytest.approx(0.2) and threshold_of(
        file, 6.0
    ) == pytest.approx(0.4)
    assert isinstance(policy_of(file, 3.0), ThresholdPolicy)


def test_a_policy_of_another_family_is_refused(schedule):
    check_family(schedule, "flux")
    with pytest.raises(
        PolicyError, match="architecture = 'flux', trained on demo flux; this model is sd3"
    ):
        check_family(schedule, "sd3")


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("kind", "plan", "kind = 'plan'; known are schedule, threshold, heads"),
        ("version", "2", "version is '2'; this version of RAPID reads '1'"),
        ("format", "other", "format is 'other'"),
        ("architecture", "unet", "architecture = 'unet'; known are flux"),
        ("budgets", "[4, 2]", "budgets = [4, 2]; wanted is a rising list"),
        ("budgets", "[2, true]", "budgets = [2, True]"),
        ("budgets", "2 and 4", "budgets = '2 and 4' is not JSON"),
        ("licence", "", "licence is missing"),
    ],
)
def test_wrong_metadata_is_named(path, field, value, said):
    write(path, "threshold", METADATA, {"thresholds": torch.tensor([0.1, 0.4])})
    body = {
        **{k: v if isinstance(v, str) else str(v) for k, v in METADATA.items()},
        "format": FORMAT,
        "version": "1",
        "kind": "threshold",
        field: value,
    }
    save_file({"thresholds": torch.tensor([0.1, 0.4])}, path, body)
    with pytest.raises(PolicyError) as error:
        read(path)
    assert "policy.safetensors" in str(error.value) and said in str(error.value)


@pytest.mark.parametrize(
    "name, change, said",
    [
        ("sigmas", None, "sigmas is missing from the tensors"),
        ("sigmas", torch.linspace(0, 1, 9), "sigmas must fall"),
        ("gram.means", torch.zeros(8, 3).double(), "gram.means has shape (8, 3); wanted is 8 x 8"),
        ("gram.means", torch.full((8, 8), float("nan")).double(), "gram.means holds NaN"),
        ("gram.products", None, "gram.products is missing from the tensors"),
        (
            "gram.products",
            torch.zeros(8, 8).double(),
            "gram.products must be symmetrical and above 0",
        ),
        (
            "gram.products",
            torch.eye(8),
            "gram.products has type torch.float32; wanted is torch.float64",
        ),
        ("plan.0.computed", torch.ones(8, dtype=torch.uint8), "computes 8 of 8 steps"),
        ("plan.0.computed", torch.zeros(8), "has type torch.float32; wanted is torch.uint8"),
    ],
)
def test_wrong_tensors_are_named(path, name, change, said):
    tensors = plan_tensors([plan(4), plan(2)])
    tensors = (
        {**tensors, name: change}
        if change is not None
        else {k: v for k, v in tensors.items() if k != name}
    )
    file = write(path, "schedule", METADATA, tensors)
    with pytest.raises(PolicyError) as error:
        plans_of(file)
    assert said in str(error.value)


def test_truncated_missing_and_huge_files_are_refused(path, schedule, tmp_path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PolicyError, match="not a whole safetensors file"):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(PolicyError, match="not a whole safetensors file"):
        read(path)
    with pytest.raises(PolicyError, match="cannot be read"):
        read(tmp_path / "nothing.safetensors")
    with open(path, "wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(PolicyError, match="65 MiB; a policy has at most 64 MiB"):
        read(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(PolicyError, match="format is missing"):
        read(path)


def test_a_policy_for_a_model_of_another_size_is_refused(path, schedule):
    check_model(schedule, 16, 3072)  # it does not say
    sized = write(path, "schedule", {**METADATA, "hidden": 128}, plan_tensors([plan(4), plan(2)]))
    check_model(sized, 16, 128)
    with pytest.raises(
        PolicyError, match="hidden = 128, trained on demo flux; this model has 3072"
    ):
        check_model(sized, 16, 3072)


def test_a_run_so_short_that_one_evaluation_exceeds_the_budget_computes_one(path):
    tensors = plan_tensors([Plan((True, False, False), (1.0, 0.7, 0.4, 0.0))] * 2)
    file = write(path, "schedule", METADATA, tensors)
    assert text(marks_of(policy_of(file, 4.0), 3)[0]) == "#.."


def test_equal_budgets_are_no_rising_list(path):
    with pytest.raises(PolicyError, match="budgets = \\[2, 2\\]; wanted is a rising list"):
        write(path, "threshold", {**METADATA, "budgets": [2, 2]}, {"thresholds": torch.ones(2)})


def test_numbers_that_python_does_not_read_are_named(path, schedule):
    save_file(dict(schedule.tensors), path, {**schedule.metadata, "budgets": "9" * 5000})
    with pytest.raises(PolicyError, match=r"policy\.safetensors: budgets"):
        read(path)


def test_a_file_that_could_not_be_read_again_leaves_the_one_before(path, schedule):
    with pytest.raises(PolicyError, match=r"policy\.safetensors: licence"):
        write(path, "schedule", {**METADATA, "licence": ""}, dict(schedule.tensors))
    assert plans_of(read(path)) == plans_of(schedule) and not path.with_suffix(".part").exists()


@pytest.mark.parametrize("speedup, steps, marks", [(3.0, 6, "#...#."), (2.4, 7, "#...#..")])
def test_of_few_evaluations_on_other_steps_the_last_comes_earlier(path, speedup, steps, marks):
    found = write(path, "schedule", METADATA, plan_tensors([plan(4), plan(2)]))
    actions, actor = marks_of(policy_of(found, speedup), steps)
    assert text(actions) == marks and "spaced evenly instead" in actor.notes[0]
    assert actor.policy.plan is not None


def test_a_plan_is_moved_to_the_noise_levels_that_it_computes():
    """Not to the same shares of the steps, of which another scheduler puts more where the plan
    hardly looks."""
    marks = (0, 1, 5, 8, 10, 12)
    sparse = Plan(tuple(i in marks for i in range(16)), tuple(1 - i / 16 for i in range(17)))
    bowed = tuple((1 - i / 24) ** 2 for i in range(25))
    found = [bowed[i] for i, on in enumerate(sparse.on(6, bowed)) if on]
    assert found == pytest.approx([sparse.schedule[i] for i in marks], abs=0.05)
    half = tuple(
        0.5 - i / 32 for i in range(17)
    )  # an image to begin with: the second half of the plan's levels
    lower = [half[i] for i, on in enumerate(sparse.on(4, half)) if on]
    assert (
        lower[0] == 0.5
        and lower[-1] == pytest.approx(sparse.schedule[12], abs=0.04)
        and len(lower) == 4
    )
    above = tuple(0.04 - i / 400 for i in range(17))  # below all that it computes: spaced evenly
    assert sparse.on(4, above) == evenly_spaced(4, 16, few=True)


@given(
    st.integers(0, 10**6),
    st.booleans(),
    st.integers(4, 40),
    st.floats(0.3, 3.0),
    st.floats(0.2, 1.0),
    st.floats(1.0, 6.0),
)
def test_a_moved_plan_keeps_its_budget_and_its_distances(seed, apart, steps, bend, start, speedup):
    picked = sorted(random.Random(seed).sample(range(18 if apart else 26), 9))
    marks = {0, *(2 + mark + (k if apart else 0) for k, mark in enumerate(picked))}
    searched = Plan(tuple(i in marks for i in range(28)), tuple(1 - i / 28 for i in range(29)))
    schedule = tuple(start * (1 - i / steps) ** bend for i in range(steps + 1))
    most = max(1, int(steps / speedup))
    on = searched.on(most, schedule)
    assert len(on) == steps and on[0] and sum(on) <= most
    if not any(i + 1 in marks for i in marks) and 2 * sum(on) <= steps:
        assert not any(a and b for a, b in itertools.pairwise(on))
