"""Several processes: who does what, what comes together, and what is said when one is lost."""

import subprocess
import sys

import pytest

from devkit.base_folder import REPOSITORY
from devkit.server import child_environment, free_port
from training.processes import all_gather, broadcast_from_rank0, rank, shard, world_size

PROGRAM = """
import sys, time, torch
from datetime import timedelta
from training.processes import ProcessLost, all_gather, broadcast_from_rank0, distributed, rank
from training.processes import shard, world_size

class Foreign:
    def __reduce__(self):
        return print, ("a peer's pickle was executed",)

with distributed(timedelta(seconds=5)):
    assert (rank(), world_size()) == (int(sys.argv[2]), 2)
    assert all_gather([n * n for n in shard(range(5))]) == [0, 1, 4, 9, 16]
    assert all_gather([]) == [] and all_gather([None] if rank() else []) == [None]
    assert broadcast_from_rank0(lambda: f"of process {rank()}") == "of process 0"
    plain = {"a": (1, 0.5, None, True), "b": [{"c": torch.arange(3.0)}]}
    again = broadcast_from_rank0(lambda: plain)
    assert again["a"] == plain["a"] and torch.equal(again["b"][0]["c"], torch.arange(3.0))
    big = torch.arange(6e6).view(6, -1)
    assert all(torch.equal(a, b) for a, b in zip(all_gather(shard(big)), big, strict=True))
    try:
        all_gather([Foreign()])
    except TypeError as error:
        assert "Foreign does not go between processes" in str(error)
    print("fine", flush=True)
    if rank() == 1:
        sys.exit("gone") if sys.argv[1] == "ends" else time.sleep(12)
    began = time.monotonic()
    try:
        all_gather([1])
    except ProcessLost as error:
        sys.exit(f"{error} {time.monotonic() - began:.0f} s")
"""


def test_one_process_does_everything():
    assert (rank(), world_size()) == (0, 1)
    assert list(shard(range(3))) == [0, 1, 2]
    assert all_gather([1, 2]) == [1, 2]
    assert broadcast_from_rank0(lambda: 3) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "how, said",
    [
        ("ends", "because another one has ended"),
        ("hangs", "because another one did not answer in time"),
    ],
)
def test_two_share_work_and_one_that_loses_the_other_stops(how, said):
    environment = child_environment(1) | dict(
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
        PYTHONPATH=str(REPOSITORY),
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, how, str(n)],
            stdout=subprocess.PIPE,
            text=True,
            stderr=subprocess.PIPE,
            env={**environment, "RANK": str(n), "LOCAL_RANK": str(n)},
        )
        for n in (0, 1)
    ]
    try:
        out, error = both[0].communicate(timeout=60)
    finally:
        for child in both:
            child.kill()
            child.communicate()
    assert out == "fine\n" and said in error, error
    assert "process 0 of 2 stops" in error and "The same command goes on" in error
    seconds = int(error.split()[-2])
    assert seconds <= 2 if how == "ends" else 4 <= seconds <= 8
