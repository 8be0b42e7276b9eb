"""What the registry would ship. What may import what is in pyproject.toml (import-linter)."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from rapid_testing.archive import shipped_files, tracked_files

SHIPPED = {
    *("__init__.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"),
    *("nodes", "rapid_core", "web", "locales", "example_workflows", "subgraphs"),
}
# The registry's scanner is textual; so is this.
FORBIDDEN = re.compile(
    r"\beval\(|\bexec\(|\bsubprocess\b|os\.system|os\.environ|os\.getenv|\burllib\b|\brequests\b|\bsocket\b"
    r"|\bpickle\b|torch\.load\("
)


@pytest.fixture(scope="module")
def shipped(repository) -> list[Path]:
    return shipped_files(repository)


def python_files(repository: Path, *folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((repository / folder).rglob("*.py"))]


def test_only_what_users_run_is_shipped(shipped):
    assert {path.parts[0] for path in shipped} <= SHIPPED


def test_help_pages_and_translations_are_shipped(shipped, repository):
    wanted = {path for path in tracked_files(repository) if path.parts[0] in ("web", "locales")}
    assert len(wanted) >= 16
    assert wanted - set(shipped) == set()


def test_nothing_of_tests_or_demo_is_shipped(shipped):
    strangers = {"tests", "demo", "devkit", "benchmarks", ".github", ".ci"}
    assert [
        path for path in shipped if strangers & set(path.parts) or path.name.startswith("test_")
    ] == []


def test_nothing_that_is_shipped_points_to_policies_of_the_demo_models(shipped, repository):
    texts = [path for path in shipped if path.suffix in {".md", ".py", ".js", ".json"}]
    files = [path.name for path in (repository / "policies").iterdir()]
    assert len(texts) > 100 and len(files) >= 2
    assert [
        path
        for path in texts
        if any(name in (repository / path).read_text(encoding="utf-8") for name in files)
    ] == []


def test_no_example_is_shipped_that_needs_the_demo(shipped, repository):
    examples = [
        path for path in shipped if path.parts[0] == "example_workflows" and path.suffix == ".json"
    ]
    assert len(examples) >= 2 * 9
    assert [
        path for path in examples if "RAPIDDemo" in (repository / path).read_text(encoding="utf-8")
    ] == []


def test_shipped_code_is_free_of_what_the_registry_flags(shipped, repository):
    hits = []
    for path in shipped:
        if path.suffix in {".py", ".js"}:
            for number, line in enumerate(
                (repository / path).read_text(encoding="utf-8").splitlines(), 1
            ):
                if FORBIDDEN.search(line):
                    hits.append(f"{path}:{number}: {line.strip()}")
    assert hits == []


def test_the_core_can_be_imported_without_comfyui(repository):
    modules = [
        ".".join(path.relative_to(repository).with_suffix("").parts)
        for path in python_files(repository, "rapid_core")
        if "comfy" not in path.relative_to(repository).parts[:-1]
    ]
    code = f"import sys; sys.path.insert(0, {str(repository)!r})\n" + "\n".join(
        f"import {name.removesuffix('.__init__')}" for name in modules
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_root_offers_v3_nodes_only(repository):
    text = (repository / "__init__.py").read_text()
    assert "comfy_entrypoint" in text
    assert "NODE_CLASS_MAPPINGS" not in text  # it would switch V3 off
