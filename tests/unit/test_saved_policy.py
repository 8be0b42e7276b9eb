"""A run's timeline as a policy file: which steps it has, and which records are refused with which reason."""

import pytest

from rapid_core.calibration.plans import Figures
from rapid_core.calibration.state import State
from rapid_core.policy_file.format import read
from rapid_core.policy_file.policies import policy_of
from rapid_core.policy_file.saved import COMMAND, NotSaved, save, schedule_of
from rapid_core.policy_file.schedules import schedules_of

COMPUTED = (True, True, False, True, False, False, True, False)
SIGMAS = [1 - i / 8 for i in range(9)]


def evaluation(step, computed, **changes):
    plain = {"index": step, "step": step, "modes": ["run" if computed else "skip"]}
    return {**plain, "token_share": [float(computed)], "density": [], "sigmas": [], **changes}


def record(**changes):
    """A record of a run on eight steps, in its JSON form, as far as it counts here."""
    evaluations = [evaluation(i, computed) for i, computed in enumerate(COMPUTED)]
    plain = {"format": "rapid-record", "version": 2, "status": "finished", "sampler": "euler"}
    run = {"family": "flux", "sigmas": SIGMAS, "evaluations": evaluations, "full_evaluations": None}
    return {**plain, **run, **changes}


def with_evaluation(step, /, **changes):
    """The same with another evaluation at a step."""
    evaluations = record()["evaluations"]
    evaluations[step] = {**evaluations[step], **changes}
    return record(evaluations=evaluations)


def test_a_saved_timeline_is_read_again_as_the_same_steps(tmp_path):
    file, speedup = save(tmp_path, "mine", record())
    again = read(tmp_path / "mine.safetensors")
    (schedule,) = schedules_of(again)
    assert schedule.computed == COMPUTED and schedule.gram is None
    assert schedule.sigmas == pytest.approx(SIGMAS) and again.budgets == (2.0,) and speedup == 2.0
    assert again.metadata["training_command"] == COMMAND and file.metadata == again.metadata
    assert policy_of(again, speedup).schedule.computed == COMPUTED


def test_auto_does_not_find_it_since_it_names_no_weights(tmp_path):
    file, _ = save(tmp_path, "mine", record())
    assert "weights" not in file.metadata


def test_the_speedup_to_replay_at_is_never_above_what_the_run_had(tmp_path):
    computed = [True, True, False, *[True] * 5]
    evaluations = [evaluation(i, one) for i, one in enumerate(computed)]
    file, speedup = save(tmp_path, "mine", record(evaluations=evaluations))
    assert speedup == 1.1 and file.budgets[0] == pytest.approx(8 / 7)


def test_a_sampler_that_looks_twice_a_step_is_saved_by_step(tmp_path):
    evaluations = [
        evaluation(i, one) for i, one in enumerate(COMPUTED) for _ in range(2 - (i == 7))
    ]
    schedule, family = schedule_of(record(evaluations=evaluations))
    assert schedule.computed == COMPUTED and family == "flux"


def test_a_family_that_is_marked_as_unverified_is_its_family():
    assert schedule_of(record(family="lumina2 (unverified)"))[1] == "lumina2"


@pytest.mark.parametrize(
    "code, given",
    [
        ("save_no_record", "nonsense"),
        ("save_no_record", {"format": "rapid-record", "version": 2}),
        ("save_no_record", with_evaluation(3, modes=[])),
        ("save_version", record(version=1)),
        ("save_version", record(version=3)),
        ("save_unfinished", record(status="interrupted")),
        ("save_family", record(family="UNetModel (unverified)")),
        ("save_regions", with_evaluation(3, token_share=[0.5])),
        ("save_other", with_evaluation(3, modes=["reuse"])),
        ("save_other", with_evaluation(3, density=[0.5])),
        ("save_images_differ", with_evaluation(3, modes=["run", "skip"])),
        ("save_images_differ", with_evaluation(3, sigmas=[0.5, 0.4])),
        ("save_sigmas", record(sigmas=[1.0, 0.5, 0.7, *SIGMAS[3:]])),
        ("save_sigmas", record(sigmas=[1.0, 0.0])),
        ("save_steps", with_evaluation(3, step=2)),
        ("save_steps", record(full_evaluations=20)),
        ("save_full", record(evaluations=[evaluation(i, True) for i in range(8)])),
    ],
)
def test_what_is_no_schedule_is_refused_with_its_reason(tmp_path, code, given):
    with pytest.raises(NotSaved) as refused:
        save(tmp_path, "mine", given)
    assert refused.value.reason.code == code and str(refused.value).startswith("not saved: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["", "../outside", "a/b", "a\\b", ".hidden", "con", "x" * 81, None, "a.", "a:b"]
)
def test_a_name_that_is_no_file_name_is_refused(tmp_path, name):
    with pytest.raises(NotSaved, match="the name .* was given; accepted are"):
        save(tmp_path / "policies", name, record())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("letter", "most"), [("a", 80), ("é", 80), ("模", 63), ("𝒜", 47)])
def test_the_longest_name_fits_while_its_file_is_written(tmp_path, letter, most):
    """Systems bound the bytes of a name, and letters have up to four."""
    file, _ = save(tmp_path, letter * most, record())
    state = State(tmp_path, file.path.stem, "0" * 32, 8)  # RAPID Calibrate's, beside it
    state.write(Figures())
    state.write_latents({})
    with pytest.raises(NotSaved, match="the name .* was given; accepted are"):
        save(tmp_path, letter * (most + 1), record())


def test_a_name_that_exists_is_replaced_only_on_request_and_only_if_it_was_saved_so(tmp_path):
    save(tmp_path, "mine", record())
    with pytest.raises(NotSaved, match="was saved before"):
        save(tmp_path, "mine.safetensors", record())
    other = record(evaluations=[evaluation(i, i % 2 == 0) for i in range(8)])
    file, _ = save(tmp_path, "mine", other, replace=True)
    assert schedules_of(file)[0].computed == (True, False) * 4
    (tmp_path / "theirs.safetensors").write_bytes(b"of somebody else")
    with pytest.raises(NotSaved, match="was not saved by RAPID Report"):
        save(tmp_path, "theirs", record(), replace=True)
    assert (tmp_path / "theirs.safetensors").read_bytes() == b"of somebody else"
