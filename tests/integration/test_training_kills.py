"""Training comes to the same end however often it is killed, and however many processes do it."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from devkit.base_folder import REPOSITORY, remove_base_folder
from devkit.server import child_environment
from rapid_testing.trainings import BEGIN, CORE, small_graph, train, without_seconds

pytestmark = pytest.mark.main_host
KINDS = ("heads", "schedules")


@pytest.fixture(scope="module")
def undisturbed(comfy_host, pack, demo_pack, tmp_path_factory):
    """(folder of both trainings, seconds they took), done in one go by this process."""
    for name in CORE:
        comfy_host.load_core_nodes(name)
    folder = tmp_path_factory.mktemp("undisturbed")
    graph = small_graph()
    graph.sample("", 0)  # loads the model
    began = time.monotonic()
    train(graph, folder)
    return folder, time.monotonic() - began


def start(folder: Path, *launcher: str) -> subprocess.Popen:
    """The trainings as a process of their own."""
    environment = child_environment(1)
    environment["PYTHONPATH"] = (
        f"{REPOSITORY / 'tests'}{';' if sys.platform == 'win32' else ':'}{REPOSITORY}"
    )
    command = [sys.executable, *launcher, "-m", "rapid_testing.trainings", str(folder)]
    with open(folder / "log", "ab") as log:
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True
        )


def run(folder: Path, *launcher: str, most: float = 600.0) -> bool:
    """Train for at most so many seconds and then kill; whether it came to its end."""
    child = start(folder, *launcher)
    try:
        while BEGIN not in (line := child.stdout.readline()):
            assert line, (folder / "log").read_text()[-3000:]
        try:
            code = child.wait(timeout=most)
        except subprocess.TimeoutExpired:
            return False
    finally:
        (child.terminate if launcher else child.kill)()  # torchrun ends its processes
        child.wait()
        child.stdout.close()
    assert code == 0, (folder / "log").read_text()[-3000:]
    return True


def contents(path: Path) -> tuple[dict, dict]:
    """Metadata and tensors of a policy."""
    with safe_open(path, framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}


def same(one: Path, other: Path) -> None:
    """Fail unless both folders hold the same policies and cards, and scalars once a step."""
    for kind in KINDS:
        (about, tensors), (wanted_about, wanted) = (
            contents(f / f"{kind}.safetensors") for f in (one, other)
        )
        assert without_seconds(about) == without_seconds(wanted_about)
        assert tensors.keys() == wanted.keys() and all(
            torch.equal(tensors[n], wanted[n]) for n in wanted
        )
        assert (
            len({without_seconds((folder / f"{kind}.md").read_text()) for folder in (one, other)})
            == 1
        )
        assert points(one / kind / "tensorboard") == points(other / kind / "tensorboard")
    assert lines(one) == lines(other) and len(lines(one)) == 3


def points(folder: Path) -> dict:
    """{tag: [(step, value)]} as TensorBoard shows them, without what time took."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder), {accumulator.SCALARS: 0}).Reload()
    return {
        tag: [(e.step, e.value) for e in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
        if not tag.startswith("time/")
    }


def lines(folder: Path) -> list[dict]:
    """Lines of scalars.jsonl, without what time took."""
    found = [
        json.loads(line) for line in (folder / "heads" / "scalars.jsonl").read_text().splitlines()
    ]
    return [
        {k: v for k, v in line.items() if k not in ("when", "rollouts_per_second")}
        for line in found
    ]


@pytest.mark.slow
def test_killed_at_random_moments_it_comes_to_the_same_end(undisturbed, tmp_path, pytestconfig):
    """`--kills N` for more than a few, each at any moment of the two trainings. What comes to its
    end is compared; then it is all begun again until there were kills enough."""
    whole, seconds = undisturbed
    wanted, chance, kills, ends = pytestconfig.getoption("kills"), random.Random(), 0, 0
    while kills < wanted or not ends:
        folder = tmp_path / str(ends)
        folder.mkdir()
        while not run(
            folder, most=(most := chance.uniform(0, seconds) if kills < wanted else 600.0)
        ):
            kills += 1
            print(f"kill {kills} of training {ends + 1} after {most:.2f} of {seconds:.2f} s")
        same(folder, whole)
        ends += 1
        remove_base_folder(folder / "base-0")
    assert kills == wanted


@pytest.mark.slow
def test_two_processes_come_to_the_same_end_as_one(undisturbed, tmp_path):
    """Groups, pictures of plans, references and held-out prompts are shared unevenly: there are
    three of each."""
    assert run(tmp_path, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    same(tmp_path, undisturbed[0])
    for number in (0, 1):
        remove_base_folder(tmp_path / f"base-{number}")
