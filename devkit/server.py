"""ComfyUI as a child process: headless, on a free port, always stopped."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

from devkit.cache import SetupError, cache_root
from devkit.client import Client, ClientError
from devkit.device import has_gpu

START_TIMEOUT = 300.0  # seconds; 25 are usual, a slow disk and a cold cache take far more
DEFAULT_PORT = 8188  # ComfyUI's own
PORTS_TO_TRY = 100


def child_environment(threads: int | None = None) -> dict[str, str]:
    """Environment of a ComfyUI or test process; settings of the user come first."""
    environment = dict(os.environ)
    environment.pop(
        "PYTHONPATH", None
    )  # this repository has a `nodes` folder, ComfyUI a module `nodes`
    environment.setdefault("PYTHONUTF8", "1")
    if threads is not None:
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    # Threads that spin while they wait make a busy machine 5 to 20 times slower.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environment.setdefault("GOMP_SPINCOUNT", "0")
    return environment


def keep_tree_clean(environment: dict[str, str], tree: Path) -> dict[str, str]:
    """Leave no compiled files in a ComfyUI tree that is not of our own cache."""
    ours = cache_root().resolve() in Path(tree).resolve().parents
    return environment if ours else {**environment, "PYTHONDONTWRITEBYTECODE": "1"}


def script_environment(tree: Path, threads: int | None) -> dict[str, str]:
    """Environment of tests and scripts: where ComfyUI is, and a tree of it that stays clean."""
    environment = keep_tree_clean(child_environment(threads), tree)
    return {**environment, "RAPID_HOST_TREE": str(tree)}


def host_arguments(base: Path, gpu: bool) -> list[str]:
    """ComfyUI's command line for one isolated run on `base`, shared by server and in-process
    tests."""
    arguments = [
        "--base-directory",
        str(base),
        "--database-url",
        "sqlite:///:memory:",
        "--use-pytorch-cross-attention",
    ]
    return arguments if gpu else ["--cpu", *arguments]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_free(port: int) -> bool:
    """Whether a server can listen on this port of this machine, and nobody does."""
    with socket.socket() as probe:  # finds a server that listens on all addresses, too
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            return False
    with socket.socket() as probe:
        if sys.platform != "win32":  # as the server does: a port that was just left can be used
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def next_free_port(first: int) -> int:
    """The first port from `first` on that is free."""
    ports = range(first, first + PORTS_TO_TRY)
    found = next((port for port in ports if is_free(port)), None)
    if found is None:
        raise SetupError(f"no port from {ports[0]} to {ports[-1]} is free; give one: --port N")
    return found


@dataclass(eq=False)
class ComfyServer:
    """`with ComfyServer(tree, base) as server: server.client.run(graph)`."""

    tree: Path
    """The folder of a ComfyUI."""
    base: Path
    """Its base folder; the log goes there, too."""
    _: KW_ONLY
    python: Path = field(default_factory=lambda: Path(sys.executable))
    """The interpreter that runs it."""
    port: int = field(default_factory=free_port)
    """The port that it listens on, on this machine only."""
    threads: int | None = None
    """How many threads torch may use; None for its own choice."""
    extra: tuple[str, ...] = ()
    """More of ComfyUI's flags."""
    process: subprocess.Popen | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.log = self.base / "server.log"
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = Client(self.url)

    def __enter__(self) -> ComfyServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and wait until it answers."""
        command = [
            *(
                str(self.python),
                str(self.tree / "main.py"),
                "--listen",
                "127.0.0.1",
                "--port",
                str(self.port),
            ),
            *(
                "--disable-auto-launch",
                *host_arguments(self.base, has_gpu(self.python)),
                *self.extra,
            ),
        ]
        environment = keep_tree_clean(child_environment(self.threads), self.tree)
        if not is_free(self.port):  # another server there would answer in place of ours
            raise SetupError(
                f"port {self.port} cannot be used; perhaps your own ComfyUI listens there. "
                "Give another, or leave --port out"
            )
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.base,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )
        try:
            self._wait_until_up()
        except BaseException:
            self.stop()
            raise

    def _wait_until_up(self) -> None:
        """Poll until /system_stats answers; a process that ends or hangs is an error with its last
        words."""
        assert self.process is not None
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise SetupError(
                    f"ComfyUI ended with code {self.process.returncode} while starting:\n{self.log_tail()}"
                )
            try:
                self.client.system_stats()
                return
            except ClientError:
                time.sleep(0.3)
        raise SetupError(
            f"ComfyUI does not answer on {self.url} after {START_TIMEOUT:.0f} s:\n{self.log_tail()}"
        )

    def stop(self) -> None:
        """End the process, kindly first; safe to call twice."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def log_tail(self, lines: int = 30) -> str:
        """The end of the server's log."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""
        return "\n".join(text.splitlines()[-lines:])
