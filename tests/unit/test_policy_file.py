"""Policy files: what is written is read back, and everything that is wrong is named."""

import itertools
import math
import os
import random
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from rapid_core.policy_file.format import FORMAT, MAX_BYTES, PolicyError, read, write
from rapid_core.policy_file.policies import check_family, check_model, policy_of
from rapid_core.policy_file.schedules import (
    MAX_STEPS,
    nearest_schedule,
    schedule_tensors,
    schedules_of,
)
from rapid_core.policy_file.thresholds import threshold_of
from rapid_core.quadrature.gram import RIDGE, Gram, GramFit
from rapid_core.quadrature.spacing import (
    FEW,
    best_spaced,
    evenly_spaced,
    max_evaluations,
    spacing_of,
)
from rapid_core.reasons import ReasonCode
from rapid_core.techniques.step_skip.schedule import Schedule, SchedulePolicy
from rapid_core.techniques.step_skip.threshold import ThresholdPolicy
from rapid_core.types import Mode, Observation, Reason, Window
from rapid_testing.actors import METADATA, marks_of, text
from rapid_testing.runs import bending, products_of, weights_by_hand

SIGMAS = tuple(1 - i / 8 for i in range(9))
GRAM = Gram.of(products_of(bending(SIGMAS, 4)), 8)


TWENTY = tuple(1 - i / 20 for i in range(21))


def searched(count):
    return Schedule(evenly_spaced(count, 8), SIGMAS, GRAM)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "policy.safetensors"


@pytest.fixture
def schedule(path):
    return write(path, "schedule", METADATA, schedule_tensors([searched(4), searched(2)]))


def test_a_schedule_is_read_as_it_was_written(schedule):
    found = schedules_of(schedule)
    assert found == [searched(4), searched(2)]
    assert all(
        torch.equal(getattr(p.gram, name), getattr(GRAM, name))
        for p in found
        for name in ("products", "means")
    )
    assert schedule.budgets == (2.0, 4.0)
    assert schedule.metadata["reward"] == "psnr" and schedule.base_model == "demo flux"


def test_the_schedule_of_a_budget_runs_with_weights_fitted_to_its_marks(schedule):
    actions, actor = marks_of(policy_of(schedule, 2.0), 8)
    assert text(actions) == "".join(
        "#" if on else "." for on in searched(4).computed
    ) and actor.notes == (Reason(ReasonCode.POLICY_GIVEN, file="policy.safetensors"),)
    assert [a.prediction_weights for a in actions] == weights_by_hand(searched(4))


def test_weights_are_fitted_to_what_is_computed_whatever_that_is(schedule):
    """Between budgets, where the schedule is thinned out; and where others had a step computed that was
    to be skipped."""
    fewer, _ = marks_of(policy_of(schedule, 2.5), 8)
    on = tuple(a.mode is Mode.RUN for a in fewer)
    assert sum(on) == 3 and [a.prediction_weights for a in fewer] == weights_by_hand(
        Schedule(on, SIGMAS, GRAM)
    )
    forced, _ = marks_of(policy_of(schedule, 2.0), 8, forced=(1,))
    on = tuple(a.mode is Mode.RUN or i == 1 for i, a in enumerate(forced))
    assert [a.prediction_weights for a in forced][2:] == weights_by_hand(
        Schedule(on, SIGMAS, GRAM)
    )[2:]


def test_a_schedule_without_inner_products_leaves_weights_to_adams_bashforth(path):
    bare = [Schedule(evenly_spaced(n, 8), SIGMAS) for n in (4, 2)]
    policy = policy_of(write(path, "schedule", METADATA, schedule_tensors(bare)), 2.0)
    assert policy.schedule.gram is None
    plain = marks_of(SchedulePolicy(speedup=2.0, schedule=bare[0]), 8)[0]
    assert [a.prediction_weights for a in marks_of(policy, 8)[0]] == [
        a.prediction_weights for a in plain
    ]


def test_on_other_steps_or_samplers_the_schedule_is_moved_and_says_so(schedule):
    given, moved = (
        Reason(code, file="policy.safetensors")
        for code in (ReasonCode.POLICY_GIVEN, ReasonCode.SCHEDULE_MOVED)
    )
    actions, actor = marks_of(policy_of(schedule, 2.0), 8, euler=False)
    assert text(actions).count("#") == 4 and actor.notes == (given, moved)
    assert not any(len(a.prediction_weights) > 2 for a in actions if a.prediction_weights)
    plan = Schedule(best_spaced(10, TWENTY), TWENTY)
    policy = SchedulePolicy(speedup=2.0, schedule=plan, source="policy.safetensors")
    for steps in (18, 24, 30):
        actions, actor = marks_of(policy, steps)
        assert text(actions).count("#") == steps // 2 and actor.notes == (given, moved)


BOWED = tuple((1 - i / 20) ** 4 for i in range(21))  # as karras is


@pytest.mark.parametrize("sigmas", [BOWED, tuple(1 - i / 60 for i in range(61))])
@pytest.mark.parametrize("speedup", [1.5, 2.0, 3.0])
def test_where_a_schedule_does_not_carry_over_steps_are_those_of_no_file(sigmas, speedup):
    """By the formula's costs a moved one would be 4 to 40 dB farther off there."""
    count = max_evaluations(speedup, 20)
    plan = Schedule(best_spaced(count, TWENTY), TWENTY)
    for found in (False, True):
        policy = SchedulePolicy(speedup=speedup, schedule=plan, source="a.safetensors", found=found)
        actor = policy.start(Window(math.inf, 0.0))
        seen = Observation(index=0, sigma=1.0, step=0, steps=len(sigmas) - 1, sigmas=sigmas)
        most = max_evaluations(speedup, len(sigmas) - 1)
        assert tuple(actor.settle(seen)) == best_spaced(most, sigmas)
        assert actor.notes == (Reason(ReasonCode.SCHEDULE_UNFIT, file="a.safetensors"),)


@given(st.integers(4, 60), st.floats(0.3, 4.0), st.floats(0.1, 1.0), st.floats(1.0, 6.0))
def test_a_file_costs_hardly_more_than_none_whatever_the_sigmas(steps, bend, start, speedup):
    sigmas = tuple(start * (1 - i / steps) ** bend for i in range(steps + 1))
    plan = Schedule(best_spaced(max_evaluations(speedup, 20), TWENTY), TWENTY)
    most = max_evaluations(speedup, steps)
    on = plan.computed_on(most, sigmas)
    if on is None or sum(on) <= FEW:  # of which the last decides
        return
    own, best = (spacing_of(sigmas).total(p) for p in (on, best_spaced(sum(on), sigmas)))
    assert sum(on) <= most and own <= 1.26 * best


def test_of_several_files_that_is_gone_by_which_was_searched_on_the_runs_sigmas():
    """Not the newest, whatever it was searched on."""
    wanted = Schedule(tuple(c in "#" for c in "#..#..#.#"), tuple(1 - i / 9 for i in range(10)))
    newest = Schedule(best_spaced(10, TWENTY), TWENTY)
    policy = SchedulePolicy(
        speedup=2.0,
        schedule=newest,
        source="newest.safetensors",
        found=True,
        others=((wanted, "fits.safetensors"),),
    )
    for steps, file in ((9, "fits.safetensors"), (20, "newest.safetensors")):
        actions, actor = marks_of(policy, steps)
        plan = wanted if steps == 9 else newest
        assert text(actions) == "".join("#" if on else "." for on in plan.computed)
        assert actor.notes == (Reason(ReasonCode.POLICY_FOUND, file=file),)


def test_below_the_lowest_budget_its_schedule_is_taken_whatever_the_steps(schedule):
    assert text(marks_of(policy_of(schedule, 1.3), 8)[0]).count("#") == 4
    policy = SchedulePolicy(speedup=1.3, schedule=Schedule(best_spaced(10, TWENTY), TWENTY))
    for steps in (18, 20, 30):
        assert text(marks_of(policy, steps)[0]).count("#") == steps // 2


def test_between_budgets_the_nearest_schedule_is_thinned_out(schedule):
    policy = policy_of(schedule, 2.5)
    assert isinstance(policy, SchedulePolicy) and policy.schedule == searched(4)
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
    "field, value, problem",
    [
        ("kind", "plan", "kind = 'plan'; accepted is one of schedule, threshold, heads, gaps"),
        ("version", "2", "version = '2'; accepted is '1'"),
        ("format", "other", "format = 'other'; accepted is 'rapid-policy'"),
        ("architecture", "unet", "architecture = 'unet'; accepted is one of flux"),
        ("budgets", "[4, 2]", "budgets = [4, 2]; accepted is a rising list"),
        ("budgets", "[2, true]", "budgets = [2, True]"),
        ("budgets", "2 and 4", "budgets = '2 and 4' is not JSON"),
        ("licence", "", "licence is missing"),
    ],
)
def test_wrong_metadata_is_named(path, field, value, problem):
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
    assert "policy.safetensors" in str(error.value) and problem in str(error.value)


@pytest.mark.parametrize(
    "name, change, problem",
    [
        ("sigmas", None, "sigmas is missing from the tensors"),
        ("sigmas", torch.linspace(0, 1, 9), "sigmas = [0.0, 0.125, 0.25"),
        (
            "gram.means",
            torch.zeros(8, 3).double(),
            "gram.means has shape (8, 3); accepted is 8 x 8",
        ),
        ("gram.means", torch.full((8, 8), float("nan")).double(), "gram.means holds NaN"),
        ("gram.products", None, "gram.products is missing from the tensors"),
        (
            "gram.products",
            torch.zeros(8, 8).double(),
            "gram.products has values from 0.0 on its diagonal; accepted is a symmetrical",
        ),
        (
            "gram.products",
            torch.eye(8),
            "gram.products has type torch.float32; accepted is torch.float64",
        ),
        ("plan.0.computed", torch.ones(8, dtype=torch.uint8), "computes 8 of 8 steps"),
        ("plan.0.computed", torch.zeros(8), "has type torch.float32; accepted is torch.uint8"),
    ],
)
def test_wrong_tensors_are_named(path, name, change, problem):
    tensors = schedule_tensors([searched(4), searched(2)])
    tensors = (
        {**tensors, name: change}
        if change is not None
        else {k: v for k, v in tensors.items() if k != name}
    )
    file = write(path, "schedule", METADATA, tensors)
    with pytest.raises(PolicyError) as error:
        schedules_of(file)
    assert problem in str(error.value)


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
        file.truncate(MAX_BYTES + 2**20)
    with pytest.raises(PolicyError, match="65 MiB; accepted is at most 64 MiB"):
        read(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(PolicyError, match="format is missing"):
        read(path)


def test_a_policy_for_a_model_of_another_size_is_refused(path, schedule):
    check_model(schedule, 16, 3072)  # it does not say
    sized = write(
        path, "schedule", {**METADATA, "hidden": 128}, schedule_tensors([searched(4), searched(2)])
    )
    check_model(sized, 16, 128)
    with pytest.raises(
        PolicyError, match="hidden = 128, trained on demo flux; this model has 3072"
    ):
        check_model(sized, 16, 3072)


def test_a_run_so_short_that_one_evaluation_exceeds_the_budget_computes_one(path):
    tensors = schedule_tensors([Schedule((True, False, False), (1.0, 0.7, 0.4, 0.0))] * 2)
    file = write(path, "schedule", METADATA, tensors)
    assert text(marks_of(policy_of(file, 4.0), 3)[0]) == "#.."


def test_equal_budgets_are_no_rising_list(path):
    with pytest.raises(PolicyError, match="budgets = \\[2, 2\\]; accepted is a rising list"):
        write(path, "threshold", {**METADATA, "budgets": [2, 2]}, {"thresholds": torch.ones(2)})


def test_numbers_that_python_does_not_read_are_named(path, schedule):
    save_file(dict(schedule.tensors), path, {**schedule.metadata, "budgets": "9" * 5000})
    with pytest.raises(PolicyError, match=r"policy\.safetensors: budgets"):
        read(path)


@pytest.mark.skipif(os.name == "nt", reason="its files have no such bits")
def test_a_file_is_as_readable_as_others_of_this_process(path, schedule):
    """Several users may share a folder of models."""
    (path.parent / "other").touch()
    assert path.stat().st_mode == (path.parent / "other").stat().st_mode


def test_a_file_that_could_not_be_read_again_leaves_the_one_before(path, schedule):
    with pytest.raises(PolicyError, match=r"policy\.safetensors: licence"):
        write(path, "schedule", {**METADATA, "licence": ""}, dict(schedule.tensors))
    assert schedules_of(read(path)) == schedules_of(schedule) and not list(
        path.parent.glob("*.part")
    )


@pytest.mark.parametrize("speedup, steps, marks", [(3.0, 6, "#...#."), (2.4, 7, "#...#..")])
def test_of_few_evaluations_on_other_steps_the_last_comes_earlier(path, speedup, steps, marks):
    found = write(path, "schedule", METADATA, schedule_tensors([searched(4), searched(2)]))
    actions, actor = marks_of(policy_of(found, speedup), steps)
    assert text(actions) == marks
    assert actor.notes == (Reason(ReasonCode.SCHEDULE_UNFIT, file=path.name),)
    assert actor.policy.schedule is not None


def test_a_schedule_is_moved_to_the_sigmas_that_it_computes():
    """Not to the same shares of the steps, of which another scheduler puts more where the
    schedule hardly looks."""
    marks = (0, 1, 5, 8, 10, 12)
    sparse = Schedule(tuple(i in marks for i in range(16)), tuple(1 - i / 16 for i in range(17)))
    bowed = tuple((1 - i / 24) ** 2 for i in range(25))
    found = [bowed[i] for i in sparse.moved_to(6, bowed)]
    assert found == pytest.approx([sparse.sigmas[i] for i in marks], abs=0.05)
    half = tuple(
        0.5 - i / 32 for i in range(17)
    )  # an image to begin with: the second half of the sigmas
    lower = [half[i] for i in sparse.moved_to(4, half)]
    assert (
        lower[0] == 0.5
        and lower[-1] == pytest.approx(sparse.sigmas[12], abs=0.04)
        and len(lower) == 4
    )
    above = tuple(0.04 - i / 400 for i in range(17))  # below all that it computes
    assert sparse.moved_to(4, above) == [] and sparse.computed_on(4, above) is None


@given(
    st.integers(0, 10**6),
    st.booleans(),
    st.integers(4, 40),
    st.floats(0.3, 3.0),
    st.floats(0.2, 1.0),
    st.floats(1.0, 6.0),
)
def test_a_moved_schedule_keeps_its_budget_and_its_distances(
    seed, apart, steps, bend, start, speedup
):
    picked = sorted(random.Random(seed).sample(range(18 if apart else 26), 9))
    marks = {0, *(2 + mark + (k if apart else 0) for k, mark in enumerate(picked))}
    searched = Schedule(tuple(i in marks for i in range(28)), tuple(1 - i / 28 for i in range(29)))
    schedule = tuple(start * (1 - i / steps) ** bend for i in range(steps + 1))
    most = max(1, int(steps / speedup))
    chosen = searched.moved_to(most, schedule)
    if most > 1 and start == 1.0:
        assert len(chosen) == most and chosen[0] == 0
    assert all(0 < b - a for a, b in itertools.pairwise(chosen)) and max(chosen, default=0) < steps
    if not any(i + 1 in marks for i in marks) and 2 * len(chosen) <= steps:
        assert all(b - a > 1 for a, b in itertools.pairwise(chosen))
    on = searched.computed_on(most, schedule)
    assert on is None or (len(on) == steps and on[0] and sum(on) <= most)


def altered(path, **tensors):
    """A schedule file with other tensors; their names have _ for a dot."""
    names = {"sigmas": "sigmas", "products": "gram.products", "means": "gram.means"}
    own = schedule_tensors([searched(4), searched(2)])
    own.update({names[name]: tensor.clone() for name, tensor in tensors.items()})
    return write(path, "schedule", METADATA, own)


def refusal(file):
    with pytest.raises(PolicyError) as error:
        policy_of(file, 2.0)
    return str(error.value)


def test_a_gram_matrix_that_weights_cannot_be_computed_from_is_refused(path):
    """Indefinite ones, of which some part may be singular, and numbers that overflow."""
    eye = torch.eye(8, dtype=torch.float64)
    indefinite = 3 * eye - 2 * torch.ones_like(eye)
    assert "gram.products has an eigenvalue of -13; accepted is" in refusal(
        altered(path, products=indefinite, means=eye)
    )
    singular = eye.clone()  # with the ridge that the fit adds
    singular[0, 1] = singular[1, 0] = 1 + RIDGE
    fit = GramFit(Gram(singular, singular), SIGMAS)
    fit.step = 3
    with pytest.raises(torch.linalg.LinAlgError):
        fit.weights([0, 1])
    assert "gram.products has an eigenvalue of -0.0001" in refusal(
        altered(path, products=singular, means=singular)
    )
    spread = torch.diag(torch.logspace(0, -20, 8, dtype=torch.float64))
    assert "gram.products has values from 1e-20 to 1 on its diagonal" in refusal(
        altered(path, products=spread, means=spread)
    )
    assert "gram.products has values from 1e+200" in refusal(altered(path, products=1e200 * eye))
    assert "gram.means has values up to 1e+300" in refusal(
        altered(path, products=eye, means=1e300 * eye)
    )


@given(st.integers(0, 10**6), st.floats(-0.5, 1.0), st.integers(-20, 20), st.integers(-2, 2))
def test_weights_from_an_accepted_gram_matrix_are_finite(seed, lowest, scale, span):
    """Of low rank, or with an eigenvalue a little below zero as rounding makes it."""
    make = torch.Generator().manual_seed(seed)
    rank = seed % 8 + 1
    rows = torch.randn(8, rank, generator=make, dtype=torch.float64)
    rows *= torch.logspace(0, span, 8, dtype=torch.float64)[:, None]
    products = rows @ rows.T
    products += min(0.0, lowest) * 0.5 * RIDGE * products.diagonal().min() * torch.eye(8)
    products *= 10.0**scale
    means = products * (1 + torch.rand(8, 8, generator=make, dtype=torch.float64))
    schedule = Schedule(evenly_spaced(3, 8), SIGMAS, Gram(products, means))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        tensors = schedule_tensors([schedule])
        policy = policy_of(write(path, "schedule", {**METADATA, "budgets": [2.0]}, tensors), 2.0)
    actions, actor = marks_of(policy, 8)
    weights = [w for a in actions for _, w in a.prediction_weights or ()]
    assert weights and all(map(math.isfinite, weights))
    assert [note.code for note in actor.notes] == ["policy_given"]


def test_sigmas_below_zero_are_refused(path):
    assert "end at 0 or above" in refusal(altered(path, sigmas=torch.linspace(1, -1, 9)))
    assert isinstance(
        policy_of(altered(path, sigmas=torch.linspace(1, 0.01, 9)), 2.0), SchedulePolicy
    )


@pytest.mark.parametrize("steps", [0, 1, MAX_STEPS + 1, 3_000_000])
def test_the_number_of_steps_is_bounded(path, steps):
    computed = torch.zeros(steps, dtype=torch.uint8)
    computed[:1] = 1
    tensors = {
        "sigmas": torch.arange(steps, -1, -1, dtype=torch.float32),
        "plan.0.computed": computed,
        "plan.1.computed": computed.clone(),
    }
    accepted = f"sigmas has {steps + 1} values; accepted is 3 to {MAX_STEPS + 1}"
    assert accepted in refusal(write(path, "schedule", METADATA, tensors))


@pytest.mark.parametrize(
    "budgets, problem",
    [
        ("[" * 100_000, "is not JSON"),
        ('"abc"', "budgets = 'abc'; accepted is a rising list of speed-ups from 1 to 20"),
        ('["2"]', "budgets = ['2']"),
        ("[]", "budgets = []"),
        ("[[2]]", "budgets = [[2]]"),
        ("[" + "1," * 9999 + "1]", "1, 1 ...; accepted is"),
    ],
)
def test_budgets_of_any_other_kind_are_named(path, schedule, budgets, problem):
    save_file(dict(schedule.tensors), path, {**schedule.metadata, "budgets": budgets})
    with pytest.raises(PolicyError) as error:
        read(path)
    assert problem in str(error.value) and len(str(error.value)) < 300


def test_files_of_this_repository_load():
    """Written before; the names of their tensors and metadata are the format's."""
    root = Path(__file__).parents[2]
    paths = [*root.glob("policies/*.safetensors"), *root.glob("benchmarks/policies/*.safetensors")]
    policies = {path.name: policy_of(read(path), 2.0) for path in paths}
    assert len(policies) >= 2
    schedule = policies["demo-sd3-solution.safetensors"]
    assert isinstance(schedule, SchedulePolicy) and schedule.schedule.gram is not None
    assert schedule.source == "demo-sd3-solution.safetensors"
    assert set(schedule_tensors([schedule.schedule])) == {
        "sigmas",
        "plan.0.computed",
        "gram.products",
        "gram.means",
    }


def test_the_nearest_schedule_is_by_the_ratio_of_speedups(schedule):
    assert nearest_schedule(schedule, 2.8) == searched(4)
    assert nearest_schedule(schedule, 2.9) == searched(2)


def test_a_threshold_file_settles_the_schedule(path):
    file = write(
        path,
        "threshold",
        {**METADATA, "max_consecutive": 8},
        {"thresholds": torch.tensor([0.1, 0.4])},
    )
    policy = policy_of(file, 2.0)
    assert policy.max_consecutive == 8 and policy.requirements.decides_schedule
    assert policy.source == policy.to_record()["source"] == path.name
    wrong = write(path, "threshold", METADATA, {"thresholds": torch.tensor([0.1, -0.4])})
    with pytest.raises(PolicyError, match=r"thresholds = \[0\.1.*; accepted is values above 0"):
        policy_of(wrong, 2.0)


@pytest.mark.parametrize(
    "metadata, problem",
    [
        ({"scales": {"step": True}}, "scales = {'step': True}; accepted is a positive number for"),
        ({"heads": [["step"]]}, "heads = [['step']]; accepted is a list of some of step"),
        ({"heads": "step"}, "heads = 'step'"),
        ({"hidden": 65537}, "hidden = 65537; accepted is a whole number from 1 to 65536"),
        ({"hidden": 8.0}, "hidden = 8.0"),
        (dict.fromkeys(("channels", "hidden", "numbers", "width"), 65536), "is missing from"),
    ],
)
def test_heads_that_are_no_heads_are_named(path, metadata, problem):
    """Before anything of their size is made."""
    sizes = {"channels": 4, "hidden": 8, "numbers": 1, "width": 8}
    made = {"heads": ["step"], "scales": {"step": 1.0}, **sizes, "densities": [0.5, 0.25, 0.125]}
    file = write(path, "heads", {**METADATA, **made, **metadata}, {})
    assert problem in refusal(file)
