"""What is learned of models: kept in files, shared by servers, and never lost to a bad one."""

import json
import math
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from rapid_core.architectures import FAMILIES
from rapid_core.calibration import library as module
from rapid_core.calibration.library import MAX_PICTURES, STALE, Learned, Library
from rapid_core.calibration.model_key import ModelKey
from rapid_core.policy_file.format import PolicyError, read, write
from rapid_core.policy_file.gaps import costs_of, errors_tensor, pictures_of, table_of
from rapid_core.policy_file.policies import check_family, policy_of
from rapid_core.quadrature.gap_costs import LONGEST, GapCosts, gaps_of
from rapid_core.quadrature.spacing import Spacing, best_spaced
from rapid_core.reasons import ReasonCode, text

STEPS = 12
SIGMAS = tuple(1 - i / STEPS for i in range(STEPS + 1))
KEY = ModelKey(
    family="Flux",
    architecture="flux",
    weights="0123456789abcdef",
    sampler="euler",
    guidance="CFGGuider 1",
    size="1x64x64",
    sigmas=SIGMAS,
)
# A server of its own, that adds pictures 100 * number + i, one at a time: eight of a key, and of the
# first four of them as many of another key.
WRITER = """
import json
import sys
from pathlib import Path
from rapid_core.calibration.library import Library
from rapid_core.calibration.model_key import ModelKey
from rapid_core.quadrature.gap_costs import gaps_of
folder, number, *keys = sys.argv[1:]
key, other = (ModelKey.from_json(json.loads(key)) for key in keys)
library = Library(Path(folder))
for i in range(8):
    table = dict.fromkeys(gaps_of(len(key.sigmas) - 1), 100.0 * int(number) + i)
    for one in (key, other)[: 2 if i < 4 else 1]:
        failed = library.add(one, [table])
        assert failed is None, failed
"""


def table(error=0.5, steps=STEPS):
    """A picture whose gaps all have this error."""
    return dict.fromkeys(gaps_of(steps), float(error))


def errors(learned):
    """Of pictures made by `table`, the newest last."""
    return [one[0, 2] for one in learned.tables]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "rapid_policies" / "learned"


@pytest.fixture
def library(folder):
    return Library(folder)


@pytest.fixture
def file(folder, library):
    """The file of a picture of KEY, with the error 1."""
    assert library.add(KEY, [table(1)]) is None
    return folder / f"{KEY.name}.safetensors"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_nothing_is_known_of_a_model_before_anything_was_learned(library, folder):
    assert library.find(KEY) is None
    assert library.entries() == [] and library.notes() == []
    assert not folder.exists()


def test_what_was_learned_is_found_by_the_next_server(library, folder):
    """And is to the bit what this one knows, or their pictures would differ."""
    picture = {gap: 0.1 * i + 1e-7 for i, gap in enumerate(gaps_of(STEPS), 1)}
    assert library.add(KEY, [picture]) is None
    found = Library(folder).find(KEY)
    assert found == library.find(KEY) == Learned(KEY, found.tables)
    assert found.tables[0] == pytest.approx(picture)
    assert found.costs.on(SIGMAS) == GapCosts.seen(found.tables, SIGMAS).on(SIGMAS)
    assert found.costs is found.costs and found.costs.pictures == 1
    assert names(folder) == [f"{KEY.name}.safetensors"]


def test_a_file_says_what_it_is(file):
    found = read(file)
    assert found.kind == "gaps" and found.architecture == "flux" and found.base_model == "Flux"
    assert ModelKey.from_json(found.json("key")) == KEY
    assert found.metadata["training_command"] == "RAPID Accelerate with learn on"
    (name,) = pictures_of(found)
    assert set(found.tensors) == {"sigmas", f"picture.{name}"} and len(name) == 32
    picture = found.tensors[f"picture.{name}"]
    assert picture.shape == (STEPS, LONGEST) and picture.dtype == torch.float32
    assert picture[0, 0] == 1 and not picture[STEPS - 2 :].any()  # the last step is always computed
    assert table_of(picture) == table(1)


def test_a_file_becomes_a_policy(file):
    policy = policy_of(read(file), 2.5)
    assert policy.speedup == 2.5 and policy.source == file.name
    assert policy.costs.pictures == 1 and policy.costs.on(SIGMAS) == costs_of(read(file)).on(SIGMAS)


def test_a_picture_that_is_drawn_again_is_no_other_one_that_agrees(library, folder):
    """Four of one seed would be as sure of a plan as four pictures, and one alone changes none."""
    spacing = Spacing(SIGMAS)

    def picture(late, rounding=0.0):
        late_ones = {gap: late if gap[0] >= STEPS // 2 else 1.0 for gap in gaps_of(STEPS)}
        return {g: f * 1e-3 * spacing.cost(*g) * (1 + rounding) for g, f in late_ones.items()}

    usual = best_spaced(6, SIGMAS)
    library.add(KEY, [picture(1e6, rounding) for rounding in (0, 1e-4, 0, -1e-4)])
    found = library.find(KEY)
    assert len(found.tables) == 4 and found.costs.pictures == 1
    assert found.costs.best(6, SIGMAS) == usual
    file = read(folder / f"{KEY.name}.safetensors")
    assert costs_of(file).best(6, SIGMAS) == usual
    library.add(KEY, [picture(3e5)])
    costs = library.find(KEY).costs
    assert costs.pictures == 2 and costs.best(6, SIGMAS) != usual


def test_a_model_of_no_known_family_is_kept_by_its_class(library, folder):
    key = replace(KEY, family="NewModel", architecture="")
    assert "NewModel" not in FAMILIES and library.add(key, [table()]) is None
    file = read(folder / f"{key.name}.safetensors")
    assert Library(folder).find(key).key == key
    check_family(file, "NewModel")  # as `check_base` asks where it knows no family
    with pytest.raises(PolicyError, match="architecture = 'NewModel'"):
        check_family(file, "flux")


def test_the_newest_pictures_are_kept(library, folder):
    for i in range(MAX_PICTURES + 3):
        assert library.add(KEY, [table(i)]) is None
    newest = list(map(float, range(3, MAX_PICTURES + 3)))
    assert errors(library.find(KEY)) == errors(Library(folder).find(KEY)) == newest
    library.add(KEY, map(table, range(20, 40)))  # of a large batch, too
    assert errors(Library(folder).find(KEY)) == list(map(float, range(32, 40)))


def test_two_libraries_on_one_folder_lose_nothing(folder):
    one, two = Library(folder), Library(folder)
    one.add(KEY, [table(1)])
    two.add(KEY, [table(2)])
    assert errors(one.find(KEY)) == [1, 2]
    one.add(KEY, [table(3)])
    assert errors(two.find(KEY)) == errors(one.find(KEY)) == [1, 2, 3]


def test_threads_lose_nothing(folder):
    """Some with a library of their own, as another server has."""
    shared = Library(folder)
    libraries = [shared, shared, Library(folder), Library(folder)]
    failed = []

    def learn(library, number):
        for i in range(2):
            failed.append(library.add(KEY, [table(10 * number + i)]))
            library.find(KEY)

    threads = [threading.Thread(target=learn, args=(one, i)) for i, one in enumerate(libraries)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [None] * 8
    assert sorted(errors(shared.find(KEY))) == [0, 1, 10, 11, 20, 21, 30, 31]


def test_processes_lose_nothing_but_what_is_too_much(folder, repository):
    other = replace(KEY, size="1x80x80")
    keys = [json.dumps(key.to_json()) for key in (KEY, other)]
    running = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(folder), number, *keys], cwd=repository)
        for number in ("1", "2")
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    library = Library(folder)
    found = errors(library.find(KEY))
    assert len(found) == len(set(found)) == MAX_PICTURES
    for number in (1, 2):  # of each process the newest ones, in order
        own = [error for error in found if error // 100 == number]
        assert own == [100.0 * number + i for i in range(8 - len(own), 8)]
    assert sorted(errors(library.find(other))) == [100, 101, 102, 103, 200, 201, 202, 203]
    assert library.notes() == [] and len(names(folder)) == 2


def test_the_nearest_key_stands_in_for_one_that_nothing_is_known_of(library):
    """Fewest differences first, then those that matter least, then the most pictures."""
    sigmas = tuple((1 - i / 10) ** 2 for i in range(11))

    def nearest():
        found = library.find(KEY)
        return None if found is None else (found.differs, errors(found))

    def learn(error, pictures=1, **changes):
        key = replace(KEY, **changes)
        library.add(key, [table(error, len(key.sigmas) - 1)] * pictures)

    learn(0, weights="fedcba9876543210")
    learn(0, family="Chroma")
    assert nearest() is None
    learn(1, patches="aa", sampler="dpmpp_2m", pictures=5)
    assert nearest() == (("sampler", "patches"), [1] * 5)
    learn(2, guidance="CFGGuider 4", size="1x54x54")
    assert nearest() == (("guidance", "size"), [2])
    learn(3, patches="aa", pictures=3)
    assert nearest() == (("patches",), [3] * 3)
    learn(4, guidance="CFGGuider 4")
    assert nearest() == (("guidance",), [4])
    learn(5, guidance="CFGGuider 2", pictures=2)
    assert nearest() == (("guidance",), [5] * 2)
    learn(6, sigmas=sigmas)
    found = library.find(KEY)
    assert found.differs == ("sigmas",) and found.key.sigmas == sigmas
    assert len(found.costs.on(SIGMAS)) == len(gaps_of(STEPS))
    learn(7)
    assert nearest() == ((), [7])


@pytest.mark.parametrize(
    "wrong, problem",
    [
        ({gap: 0.5 for gap in gaps_of(STEPS)[1:]}, "is not that of a run of 12 steps"),
        (table(0.5, STEPS + 1), "is not that of a run of 12 steps"),
        ({**table(), (0, 2): math.nan}, "the error of a gap is nan"),
        ({**table(), (0, 2): math.inf}, "the error of a gap is inf"),
        ({**table(), (0, 2): -0.1}, "the error of a gap is -0.1"),
        ({**table(), (0, 2): 1e39}, r"is 1e\+39; accepted is 0 to 1e\+30"),  # as float32 infinite
    ],
)
def test_a_picture_that_shows_nothing_is_refused(library, folder, wrong, problem):
    with pytest.raises(ValueError, match=problem):
        library.add(KEY, [table(), wrong])
    assert library.find(KEY) is None and not folder.exists()


@pytest.mark.parametrize(
    "sigmas, problem",
    [
        ((1.0, 0.5, 0.0), "those of 2 steps; accepted is 3 to"),
        ((1.0, 0.5, 0.5, 0.2, 0.0), "do not fall"),
        ((0.1, 0.5, 0.7, 1.0), "do not fall"),
        ((1.0, 0.5, 0.2, math.nan), "do not fall"),
        ((1e30, 1e29, 1e28, 1.0), "are too near each other"),
    ],
)
def test_a_run_that_has_no_gaps_to_learn_of_is_refused(library, sigmas, problem):
    with pytest.raises(ValueError, match=problem):
        library.add(replace(KEY, sigmas=sigmas), [table(0.5, len(sigmas) - 1)])


def test_no_pictures_are_nothing_to_keep(library, folder):
    assert library.add(KEY, []) is None and not folder.exists()


def test_without_a_folder_things_are_known_as_long_as_the_process_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    library = Library(None)
    failed = library.add(KEY, [table(1)])
    assert failed.code == ReasonCode.LEARNED_NOT_KEPT.value
    library.add(KEY, [table(2)])
    assert errors(library.find(KEY)) == [1, 2]
    assert library.find(replace(KEY, size="1x80x80")).differs == ("size",)
    (entry,) = library.entries()
    assert (entry.name, entry.size, entry.modified) == (KEY.name, 0, None)
    assert entry.key == KEY and entry.pictures == 2 and not entry.error
    library.remove(KEY.name)
    assert library.find(KEY) is None and library.entries() == []
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_loses_nothing(folder):
    """And what is known is kept with the next picture, once it can be."""
    folder.parent.mkdir()
    folder.write_bytes(b"a file in its place")
    library = Library(folder)
    for i in range(2):
        failed = library.add(KEY, [table(i)])
        assert failed.code == "learned_not_kept" and str(folder) not in text(failed)
    assert errors(library.find(KEY)) == [0, 1] and library.notes() == []
    folder.unlink()
    assert library.add(KEY, [table(2)]) is None
    assert errors(Library(folder).find(KEY)) == errors(library.find(KEY)) == [0, 1, 2]


def test_what_could_not_be_kept_is_written_without_another_picture(folder):
    """Once enough is known, none is watched any more."""
    folder.parent.mkdir()
    folder.write_bytes(b"a file in its place")
    library = Library(folder)
    other = replace(KEY, sampler="heun")
    for key in (KEY, other):
        assert library.add(key, [table(1), table(2)]) is not None
    library.keep()  # not yet
    assert errors(library.find(KEY)) == [1, 2] and folder.is_file()
    folder.unlink()
    library.keep()
    again = Library(folder)
    assert errors(again.find(KEY)) == errors(again.find(other)) == [1, 2]
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    library.keep()  # nothing is left to write
    Library(None).keep()
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")]
)
def test_a_full_disk_loses_nothing(library, folder, file, monkeypatch, error):
    def write_half(path, body):
        with path.open("wb") as file:
            file.write(body[: len(body) // 2])
        raise error

    with monkeypatch.context() as full:
        full.setattr(Path, "write_bytes", write_half)
        failed = library.add(KEY, [table(2)])
    assert failed.code == "learned_not_kept" and failed.params["error"] == "No space left on device"
    assert errors(library.find(KEY)) == [1, 2] and errors(Library(folder).find(KEY)) == [1]
    assert library.entries()[0].pictures == 2
    assert names(folder) == [file.name]
    assert library.add(KEY, [table(3)]) is None
    assert errors(Library(folder).find(KEY)) == [1, 2, 3]


def test_a_disk_so_full_that_no_lock_can_be_made_leaves_none(library, folder, file, monkeypatch):
    def full(handle, *_, **__):
        os.close(handle)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fdopen", full)
        assert library.add(KEY, [table(2)]).code == "learned_not_kept"
    assert names(folder) == [file.name] and errors(library.find(KEY)) == [1, 2]


def test_a_lock_of_who_was_killed_is_given_up(library, folder, file):
    """As are the files that were being written then."""
    lock = file.with_suffix(".lock")
    file.with_name(f"{KEY.name}.0123.part").write_bytes(file.read_bytes()[:100])
    for error, age in {2: STALE + 1, 3: -3600}.items():  # of a clock that was set back
        lock.write_text("whoever")
        os.utime(lock, (time.time() - age,) * 2)
        assert library.add(KEY, [table(error)]) is None
    assert errors(Library(folder).find(KEY)) == [1, 2, 3]
    assert names(folder) == [file.name]


def test_a_lock_that_another_holds_is_waited_for(library, folder, file, monkeypatch):
    lock = file.with_suffix(".lock")
    lock.write_text("another")
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    failed = library.add(KEY, [table(2)])
    assert failed.code == "learned_not_kept" and "another process is writing" in text(failed)
    assert lock.read_text() == "another" and errors(library.find(KEY)) == [1, 2]
    monkeypatch.setattr(module, "PATIENCE", 30.0)
    threading.Timer(0.1, lock.unlink).start()
    assert library.add(KEY, [table(3)]) is None
    assert errors(Library(folder).find(KEY)) == [1, 2, 3]


def test_a_lock_is_waited_for_until_it_is_stale(library, folder, file, monkeypatch):
    """That of a server which was killed and is back at once: nothing is lost if it ends again."""
    assert module.PATIENCE > STALE
    monkeypatch.setattr(module, "STALE", 0.3)
    file.with_suffix(".lock").write_text("whoever")
    assert library.add(KEY, [table(2)]) is None
    assert errors(Library(folder).find(KEY)) == [1, 2]


@pytest.mark.parametrize("ahead", [60.0, -60.0])
def test_a_server_whose_clock_differs_takes_no_lock_that_is_held(folder, monkeypatch, ahead):
    """Or what one of them adds, between the look of the other and its writing, would be lost."""
    one, two = Library(folder), Library(folder)
    now, write_file = time.time, module.write
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    said = []

    def write_late(*arguments):
        monkeypatch.setattr(module, "write", write_file)
        with monkeypatch.context() as other:
            other.setattr(time, "time", lambda: now() + ahead)
            said.append(two.add(KEY, [table(2)]))
        return write_file(*arguments)

    monkeypatch.setattr(module, "write", write_late)
    assert one.add(KEY, [table(1)]) is None
    assert "another process is writing" in text(said[0])
    two.keep()
    assert errors(Library(folder).find(KEY)) == [1, 2]
    assert names(folder) == [f"{KEY.name}.safetensors"]


def test_who_lost_its_lock_writes_nothing(library, folder, file, monkeypatch):
    """It was taken for dead, and another has written meanwhile."""
    lock = file.with_suffix(".lock")
    look = library._look

    def slow(path):
        look(path)
        lock.write_text("another")

    before = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(library, "_look", slow)
        assert library.add(KEY, [table(2)]).code == "learned_not_kept"
    assert file.read_bytes() == before and lock.read_text() == "another"
    assert errors(library.find(KEY)) == [1, 2]


def rewritten(path, tensors=(), **metadata):
    """A file with some tensors and metadata changed; None takes them away."""
    found = read(path)
    body = {**found.tensors, **dict(tensors)}
    texts = {**found.metadata, **metadata}
    save_file(
        {name: tensor for name, tensor in body.items() if tensor is not None},
        path,
        {name: value for name, value in texts.items() if value is not None},
    )


def cut(path):
    path.write_bytes(path.read_bytes()[:-50])


def picture_with(value):
    def change(path):
        ((name, errors),) = pictures_of(read(path)).items()
        errors = errors.clone()
        errors[0, 0] = value
        rewritten(path, {f"picture.{name}": errors})

    return change


def of_another_shape(path):
    (name,) = pictures_of(read(path))
    rewritten(path, {f"picture.{name}": torch.zeros(STEPS, LONGEST - 1)})


def of_another_key(path):
    rewritten(path, key=json.dumps(replace(KEY, size="1x8x8").to_json()))


def of_a_huge_key(path):
    """That Python reads and cannot make a float of."""
    key = {**KEY.to_json(), "sigmas": [10**400, 1e300, 0.0]}
    rewritten(path, key=json.dumps(key))


def of_other_sigmas(path):
    rewritten(path, {"sigmas": torch.linspace(1, 0, STEPS + 1) ** 2})


def a_schedule(path):
    tensors = {"sigmas": torch.tensor(SIGMAS), "plan.0.computed": torch.ones(12).byte()}
    write(path, "schedule", {**read(path).metadata, "kind": "schedule"}, tensors)


def with_an_unnamed_picture(path):
    rewritten(path, {f"picture.{'0' * 32}": torch.zeros(STEPS, LONGEST)})


BAD = {
    "empty": (lambda path: path.write_bytes(b""), "not a whole safetensors file"),
    "cut": (cut, "not a whole safetensors file"),
    "text": (lambda path: path.write_text("hello"), "not a whole safetensors file"),
    "weights": (lambda path: save_file({"w": torch.zeros(2)}, path), "format is missing"),
    "schedule": (a_schedule, "kind = 'schedule'; accepted is gaps"),
    "version": (lambda path: rewritten(path, version="2"), "version = '2'; accepted is '1'"),
    "nan": (picture_with(math.nan), "holds NaN or infinite values"),
    "negative": (picture_with(-1.0), "holds -1.0; accepted is 0 to 1e+30"),
    "shape": (of_another_shape, "has shape (12, 7); accepted is 12 x 8"),
    "key": (of_another_key, "key belongs to the name Flux-"),
    "no key": (lambda path: rewritten(path, key=None), "key is missing from the metadata"),
    "text key": (lambda path: rewritten(path, key="Flux"), "key = 'Flux' is not JSON"),
    "bad key": (lambda path: rewritten(path, key="{}"), "key is none ("),
    "huge key": (of_a_huge_key, "key is none ("),
    "sigmas": (of_other_sigmas, "key has other sigmas than the file"),
    "steps": (
        lambda path: rewritten(path, {"sigmas": torch.tensor([1.0, 0.5, 0.0])}),
        "sigmas are those of 2 steps; accepted is 3 to",
    ),
    "unnamed": (with_an_unnamed_picture, "accepted is a list of the ids of its 2 pictures"),
    "no list": (lambda path: rewritten(path, pictures="3"), "pictures = 3; accepted is a list"),
    "odd list": (lambda path: rewritten(path, pictures="[3]"), "pictures = [3]; accepted"),
    "none": (lambda path: rewritten(path, pictures="[]"), "pictures = []; accepted"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_file_is_set_aside_and_told_once(folder, file, bad):
    change, problem = BAD[bad]
    change(file)
    library = Library(folder)
    assert library.find(KEY) is None and library.find(KEY) is None
    (note,) = library.notes()
    assert note.code == ReasonCode.LEARNED_FILE_DAMAGED.value
    assert note.params["file"] == file.name and problem in note.params["error"]
    assert problem in text(note) and library.notes() == []
    assert names(folder) == [f"{KEY.name}.damaged"]
    (entry,) = library.entries()
    assert entry.name == f"{KEY.name}.damaged" and problem in entry.error
    assert entry.key is None and entry.size == file.with_suffix(".damaged").stat().st_size
    # It is in nobody's way, and can be removed.
    assert library.add(KEY, [table(2)]) is None and errors(Library(folder).find(KEY)) == [2]
    assert [one.name for one in library.entries()] == [KEY.name, f"{KEY.name}.damaged"]
    library.remove(f"{KEY.name}.damaged")
    assert names(folder) == [file.name] and errors(library.find(KEY)) == [2]


def test_a_good_file_under_another_name_is_set_aside(library, folder, file):
    file.rename(folder / "mine.safetensors")
    assert library.find(KEY) is None
    assert [note.params["file"] for note in library.notes()] == ["mine.safetensors"]
    assert names(folder) == ["mine.damaged"]


def test_a_bad_file_that_cannot_be_renamed_is_told_once_and_left_alone(folder, file, monkeypatch):
    """As in a folder that may only be read."""
    cut(file)
    before = file.read_bytes()
    library = Library(folder)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module.Path, "replace", refuse)
    assert [library.find(KEY) for _ in range(3)] == [None] * 3
    assert len(library.notes()) == 1
    (entry,) = library.entries()
    assert entry.name == KEY.name and "not a whole safetensors file" in entry.error
    assert library.add(KEY, [table(2)]).code == "learned_not_kept"
    assert library.notes() == [] and file.read_bytes() == before
    assert errors(library.find(KEY)) == [2]


def test_what_cannot_be_opened_stays_where_it_is(library, folder):
    """Nobody knows whether it is damaged. A folder stands for a file that is another user's."""
    path = folder / f"{KEY.name}.safetensors"
    path.mkdir(parents=True)
    assert [library.find(KEY) for _ in range(3)] == [None] * 3
    (note,) = library.notes()
    assert note.params["file"] == path.name
    assert library.add(KEY, [table(2)]).code == "learned_not_kept"
    assert path.is_dir() and errors(library.find(KEY)) == [2]
    assert library.notes() == [] and names(folder) == [path.name]


def test_a_bad_file_keeps_no_other_from_being_found(folder, file):
    other = replace(KEY, size="1x80x80")
    Library(folder).add(other, [table(5)])
    cut(file)
    assert errors(Library(folder).find(KEY)) == [5]


def test_files_are_read_again_only_when_they_change(library, folder, file, monkeypatch):
    reader = Library(folder)
    opened = []
    monkeypatch.setattr(module, "read", lambda path: opened.append(path.name) or read(path))
    for _ in range(3):
        assert errors(reader.find(KEY)) == [1]
    assert opened == [file.name]
    library.add(KEY, [table(2)])
    opened.clear()
    for _ in range(3):
        assert errors(reader.find(KEY)) == [1, 2]
    assert opened == [file.name]
    file.unlink()
    assert reader.find(KEY) is None and reader.entries() == []


def test_a_file_replaced_by_one_as_long_and_as_old_is_seen(library, folder, file):
    """At the most pictures all files are as long, and some file systems count in seconds."""
    reader = Library(folder)
    old = file.stat()
    assert errors(reader.find(KEY)) == [1]
    Library(folder / "other").add(KEY, [table(2)])
    (folder / "other" / file.name).replace(file)
    os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert file.stat().st_size == old.st_size and errors(reader.find(KEY)) == [2]


def test_entries_have_size_date_and_what_they_are_of(library, folder, file):
    other = replace(KEY, size="1x80x80")
    library.add(other, [table()] * 3)
    os.utime(file, (1e9, 1e9))
    entries = {entry.key: entry for entry in library.entries()}
    assert entries.keys() == {KEY, other} and not any(one.error for one in entries.values())
    assert entries[KEY].name == KEY.name and entries[KEY].modified == 1e9
    assert entries[KEY].size == file.stat().st_size and entries[KEY].pictures == 1
    assert entries[other].pictures == 3 and abs(entries[other].modified - time.time()) < 600


def test_what_is_removed_is_known_no_more(library, folder, file):
    """Nor to another server, which does not write it again."""
    other = Library(folder)
    assert errors(other.find(KEY)) == [1]
    library.remove(KEY.name)
    assert library.find(KEY) is None and other.find(KEY) is None and names(folder) == []
    other.add(KEY, [table(2)])
    assert errors(library.find(KEY)) == [2]
    with pytest.raises(
        ValueError, match="nothing was learned under the name 'Flux'; there is Flux-"
    ):
        library.remove("Flux")


def test_nothing_outside_of_the_folder_is_removed(library, folder, file):
    outside = folder.parent / "mine.safetensors"
    outside.write_bytes(b"")
    (folder / "notes.txt").write_text("mine")
    names = [
        "../mine",
        "../mine.safetensors",
        str(outside),
        str(outside.with_suffix("")),
        f"../learned/{KEY.name}",
        f"./{KEY.name}",
        "notes.txt",
        "notes",
        "..",
        ".",
        "",
        "/",
        "*",
        "\0",
    ]
    for name in names:
        with pytest.raises(ValueError, match="nothing was learned under the name"):
            library.remove(name)
    assert outside.exists() and file.exists() and (folder / "notes.txt").exists()


def test_other_files_of_the_folder_are_left_alone(library, folder, file):
    (folder / "notes.txt").write_text("mine")
    (folder / "more").mkdir()
    (folder / f"{KEY.name}-2.0.part").write_text("another key's")
    library.add(KEY, [table(2)])
    assert names(folder) == sorted([file.name, "notes.txt", "more", f"{KEY.name}-2.0.part"])
    assert [entry.name for entry in library.entries()] == [KEY.name] and library.notes() == []


def test_errors_of_gaps_go_into_a_tensor_and_back():
    picture = {gap: 0.25 * i for i, gap in enumerate(gaps_of(STEPS))}
    assert table_of(errors_tensor(picture, SIGMAS)) == picture
