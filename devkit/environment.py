"""The virtual environment that runs ComfyUI, the tests and the demo: made once, reused,
resumable."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from devkit.cache import SetupError, is_done, make_folder, mark_done, require_space
from devkit.pip_runner import run_pip

TORCH = "torch==2.13.0"
# Their wheels ask for a CUDA build of torch; --no-deps leaves the one that is installed alone.
COMPANIONS = ("torchvision==0.28.0", "torchaudio==2.11.0")
# ComfyUI's own templates: 410 MB of pictures that only `serve` shows.
TEMPLATES = "comfyui-workflow-templates"
# Documents: 90 MB that nobody here opens.
LEFT_OUT = {"torch", "torchvision", "torchaudio", TEMPLATES, "comfyui-embedded-docs"}
# With its own Node.js, so that it runs on a bare machine and without a network.
TYPE_CHECKER = "pyright[nodejs]==1.1.414"
PARTS = Path(__file__).resolve().parent
REPOSITORY = PARTS.parent
STEPS = ("pip", "torch", "companions", "host", "repair", "dev")

SCHEMAS = """\
# Added by dev.py: this wheel expects a CUDA build of torch; without one its compiled operators do
# not load, and the import fails unless these two operators have at least a schema.
import torch as _torch
_torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_torch.library.define(
    "torchvision::qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
)
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment in the cache."""

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")

    @property
    def log(self) -> Path:
        """Everything pip said while it was made."""
        return self.folder.with_name(self.folder.name + ".log")


def environment_key(host_requirements: str) -> str:
    """Short hash of all that decides what is installed: a change of any makes a new environment."""
    texts = [
        ".".join(map(str, sys.version_info[:2])),
        platform.platform(terse=True)
        if sys.platform == "win32"
        else sys.platform + platform.machine(),
        TORCH,
        *COMPANIONS,
        host_requirements,
        (REPOSITORY / "requirements-dev.txt").read_text(encoding="utf-8"),
        (PARTS / "constraints.txt").read_text(encoding="utf-8"),
    ]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


def named_packages(requirements: str) -> list[tuple[str, str]]:
    """Lines of a requirements.txt, each with the package's name in lower case before it."""
    lines = [line.split("#")[0].strip() for line in requirements.splitlines()]
    return [(re.split(r"[\s<>=!~;\[]", line)[0].lower(), line) for line in lines if line]


def host_packages(requirements: str) -> list[str]:
    """The lines of ComfyUI's requirements.txt that are installed as they are."""
    return [line for name, line in named_packages(requirements) if name not in LEFT_OUT]


def check_requirements(environment: Environment, tree: Path, flag: str = "--install") -> None:
    """Raise SetupError, with everything that is missing, where the environment lacks what a ComfyUI
    folder asks for. flag: the one that makes an environment of its own for the folder."""
    requirements = (tree / "requirements.txt").read_text(encoding="utf-8")
    answer = subprocess.run(
        [str(environment.python), "-m", "devkit.lacking"],
        input="\n".join(host_packages(requirements)),
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    found = json.loads(answer.stdout)
    if not found:
        return
    missing = [f"{one['wanted']} ({one['installed'] or 'not installed'})" for one in found]
    wanted = [one["wanted"] for one in found]
    command = shlex.join([str(environment.python), "-m", "pip", "install", *wanted])
    raise SetupError(
        f"the ComfyUI in {tree} asks for what dev.py's environment lacks: {', '.join(missing)}. Run the "
        f"same command with {flag}, which makes an environment of its own for that ComfyUI, or "
        f"install it here: {command}"
    )


def make_environment(
    folder: Path, purpose: str = "torch and ComfyUI", gib: float | None = None
) -> Environment:
    """An empty virtual environment, made anew when an earlier attempt did not finish or broke."""
    environment, stamp = Environment(folder), folder / "steps" / "venv"
    if is_done(stamp, "1") and _answers(environment.python):
        return environment
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(
            f"this Python has no {missing[0]} module: install it "
            "(Debian and Ubuntu: apt install python3-venv) or use another Python"
        )
    make_folder(folder.parent)
    needed = gib or (10 if shutil.which("nvidia-smi") else 3)
    require_space(folder.parent, needed, f"the environment for {purpose}")
    shutil.rmtree(folder, ignore_errors=True)
    made = subprocess.run(
        [sys.executable, "-m", "venv", str(folder)], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        lines = (made.stderr or made.stdout).strip().splitlines()
        raise SetupError(
            f"cannot make a virtual environment in {folder}: {lines[-1] if lines else 'no output'}"
        )
    mark_done(stamp, "1")
    return environment


def _answers(python: Path) -> bool:
    """Whether an interpreter still starts (its base Python may have been removed)."""
    try:
        return (
            subprocess.run([str(python), "-c", ""], capture_output=True, check=False).returncode
            == 0
        )
    except OSError:
        return False


def install(environment: Environment, host_requirements: str, pinned: bool = True) -> None:
    """Install all packages, step by step; finished steps are not repeated."""
    constraints = ["-c", str(PARTS / "constraints.txt")] if pinned else []
    actions: dict[str, Callable[[], None]] = {
        "pip": lambda: _upgrade_pip(environment),
        "torch": lambda: run_pip(environment.python, ["install", TORCH], TORCH, environment.log),
        # Before the host's requirements, some of which would bring another torchvision.
        "companions": lambda: _install_companions(environment),
        "host": lambda: _install_host_packages(environment, host_requirements, constraints),
        "repair": lambda: _repair_companions(environment),
        "dev": lambda: run_pip(
            environment.python,
            ["install", "-r", str(REPOSITORY / "requirements-dev.txt"), *constraints],
            "test and training tools",
            environment.log,
        ),
    }
    for number, step in enumerate(STEPS, start=1):
        stamp = environment.folder / "steps" / step
        if not is_done(stamp, "1"):
            print(f"set-up, step {number} of {len(STEPS)}: {step}", flush=True)
            actions[step]()
            mark_done(stamp, "1")


def add_templates(environment: Environment, host_requirements: str) -> None:
    """ComfyUI's templates. Without them its first page is empty, but works; so a failure is said
    and no more."""
    wanted = dict(named_packages(host_requirements)).get(TEMPLATES)
    if wanted is None:
        return
    try:
        require_space(environment.folder, 1, "ComfyUI's templates")
        _add(environment, "templates", wanted, "ComfyUI's templates (410 MB, once)")
    except SetupError as error:
        print(f"ComfyUI's own templates will not be shown: {error}", flush=True)


def add_types(environment: Environment) -> None:
    """The type checker."""
    _add(environment, "types", TYPE_CHECKER, "pyright")


def _add(environment: Environment, step: str, requirement: str, what: str) -> None:
    """Install what only one command needs, once."""
    stamp = environment.folder / "steps" / step
    if not is_done(stamp, requirement):
        constraints = ["-c", str(PARTS / "constraints.txt")]
        run_pip(environment.python, ["install", requirement, *constraints], what, environment.log)
        mark_done(stamp, requirement)


def _upgrade_pip(environment: Environment) -> None:
    """A pip that can report download progress in a readable form (24.1 or newer)."""
    run_pip(environment.python, ["install", "--upgrade", "pip>=24.1"], "pip", environment.log)


def _install_host_packages(
    environment: Environment, requirements: str, constraints: list[str]
) -> None:
    """ComfyUI's requirements, with torch held at the version that is installed."""
    packages = [*host_packages(requirements), TORCH, *COMPANIONS]
    run_pip(
        environment.python,
        ["install", *packages, *constraints],
        "ComfyUI's requirements",
        environment.log,
    )


def _install_companions(environment: Environment) -> None:
    """torchvision and torchaudio, with torch left as it is."""
    what = "torchvision and torchaudio"
    run_pip(environment.python, ["install", "--no-deps", *COMPANIONS], what, environment.log)


def _repair_companions(environment: Environment) -> None:
    """Repair torchvision and torchaudio where their CUDA wheels sit beside a CPU build of torch."""
    if not _imports(environment, "torchvision", "torchaudio"):
        _make_plain_python(environment)
        if not _imports(environment, "torchvision", "torchaudio"):
            raise SetupError(
                "torchvision or torchaudio cannot be imported beside torch: "
                f"remove {environment.folder} and run the same command again"
            )


def _imports(environment: Environment, *modules: str) -> bool:
    """Whether modules can be imported in the environment."""
    command = [str(environment.python), "-c", f"import {', '.join(modules)}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _make_plain_python(environment: Environment) -> None:
    """Make the CUDA wheels usable as plain Python packages (idempotent)."""
    code = "import sysconfig; print(sysconfig.get_paths()['platlib'])"
    answer = subprocess.run(
        [str(environment.python), "-c", code], capture_output=True, text=True, check=True
    )
    packages = Path(answer.stdout.strip())
    init = packages / "torchvision" / "__init__.py"
    text = init.read_text(encoding="utf-8")
    if not text.startswith(SCHEMAS):
        partial = init.with_name("__init__.py.partial")
        partial.write_text(SCHEMAS + text, encoding="utf-8")
        os.replace(partial, init)
    for library in (packages / "torchaudio" / "lib").glob("*.so"):
        library.unlink()
