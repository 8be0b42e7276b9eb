"""Several processes: who does what, what comes together, and what is said when one is lost."""

import subprocess
import sys

import pytest

from devkit.base_folder import REPOSITORY
from devkit.server import child_environment, free_port
from training.processes import from_first, rank, share, size, together

PROGRAM = """
import sys, time, torch
from datetime import timedelta
from training.processes import ProcessLost, from_first, rank, several, share, size, together

with several(timedelta(seconds=5)):
    assert (rank(), size()) == (int(sys.argv[2]), 2)
    assert together([n * n for n in share(range(5))]) == [0, 1, 4, 9, 16]
    assert together([]) == [] and together([None] if rank() else []) == [None]
    assert from_first(lambda: f"of process {rank()}") == "of process 0"
    big = torch.arange(6e6).view(6, -1)
    assert all(torch.equal(a, b) for a, b in zip(together(share(big)), big, strict=True))
    print("fine", flush=True)
    if rank() == 1:
        sys.exit("gone") if sys.argv[1] == "ends" else time.sleep(12)
    began = time.monotonic()
    try:
        together([1])
    except ProcessLost as error:
        sys.exit(f"{error} {time.monotonic() - began:.0f} s")
"""


def test_one_process_does_everything():
    assert (rank(), size()) == (0, 1)
    assert (
        list(share(range(3))) == [0, 1, 2]
        and together([1, 2]) == [1, 2]
        and from_first(lambda: 3) == 3
    )


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
