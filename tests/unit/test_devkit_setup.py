"""dev.py's set-up, with a stand-in for pip: nothing is downloaded."""

import io
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from devkit import environment as environments
from devkit import hosts
from devkit.cache import SetupError, is_done, mark_done, require_space
from devkit.environment import (
    Environment,
    check_requirements,
    environment_key,
    host_packages,
    install,
    make_environment,
)
from devkit.pip_runner import describe, explain_failure


def write_archive(path: Path, members: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path


@pytest.fixture
def small_host(tmp_path, monkeypatch):
    """A release of three files, and a stand-in for pip that "downloads" it; yields (cache,
    calls)."""
    inside = {
        "d-1/vendor/ComfyUI/main.py": "print()",
        "d-1/vendor/ComfyUI/comfy/sd.py": "",
        "d-1/README.md": "no",
    }
    source = write_archive(tmp_path / "source.tar.gz", inside)
    archive = hosts.SourceArchive("1", hosts.sha256_of(source))
    monkeypatch.setitem(hosts.HOSTS, "9.9.9", archive)
    calls = []

    def fake_pip(python, arguments, what, log):
        calls.append(arguments)
        (Path(arguments[arguments.index("-d") + 1]) / archive.filename).write_bytes(
            source.read_bytes()
        )

    monkeypatch.setattr(hosts, "run_pip", fake_pip)
    return tmp_path / "cache", calls


def provide(cache: Path) -> Path:
    return hosts.provide_host("9.9.9", cache, Path("python"), cache / "log")


def test_only_the_comfyui_tree_is_unpacked(small_host):
    tree = provide(small_host[0])
    files = sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file())
    assert files == ["comfy/sd.py", "main.py"]


def test_a_host_is_fetched_once_and_by_its_hash(small_host):
    cache, calls = small_host
    provide(cache)
    provide(cache)
    assert len(calls) == 1 and "--require-hashes" in calls[0]


def test_an_interrupted_unpacking_resumes_from_the_download(small_host):
    cache, calls = small_host
    provide(cache)
    (cache / "hosts" / "9.9.9.sha256").unlink()  # as if killed before the stamp
    (cache / "hosts" / "9.9.9" / "main.py").unlink()
    assert (provide(cache) / "main.py").is_file()
    assert len(calls) == 1


def test_a_wrong_hash_is_refused_and_the_file_removed(tmp_path):
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(b"something else")
    with pytest.raises(SetupError, match=r"archive.tar.gz has sha256 \w+\.\.\. but 0000"):
        hosts.verify(path, "0" * 64)
    assert not path.exists()


def test_members_that_would_leave_the_folder_are_skipped(tmp_path):
    members = {"d/vendor/ComfyUI/main.py": "", "d/vendor/ComfyUI/../../escaped.py": ""}
    hosts.unpack(write_archive(tmp_path / "a.tar.gz", members), tmp_path / "in" / "tree")
    assert not list(tmp_path.rglob("escaped.py"))


def test_an_archive_without_comfyui_is_refused(tmp_path):
    path = write_archive(tmp_path / "a.tar.gz", {"d/README.md": "", "d/vendor/ComfyUI/x.py": ""})
    with pytest.raises(SetupError, match="holds no ComfyUI tree"):
        hosts.unpack(path, tmp_path / "tree")


def test_a_folder_that_is_no_comfyui_is_refused(tmp_path):
    with pytest.raises(SetupError, match="main.py"):
        hosts.check_user_tree(tmp_path)


def test_a_host_tree_that_is_none_is_named_with_what_is_accepted(tmp_path):
    (tmp_path / "main.py").write_text("")
    accepted = "the folder .*that holds main.py"
    for path, said in (
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "main.py", "is a file"),
        (tmp_path, r"is no ComfyUI folder \(nodes.py, requirements.txt, comfy not found\)"),
    ):
        with pytest.raises(SetupError, match=f"--host-tree {path} {said}: give {accepted}"):
            hosts.check_user_tree(path, "--host-tree")


def test_a_folder_says_which_version_it_is_or_is_called_by_its_name(tmp_path):
    tree = tmp_path / "ComfyUI-master"
    tree.mkdir()
    assert hosts.version_of(tree) == "ComfyUI-master"
    (tree / "comfyui_version.py").write_text('# made by the build\n__version__ = "0.46.0"\n')
    assert hosts.version_of(tree) == "0.46.0"


def asking(folder, *requirements):
    """A ComfyUI folder that asks for these."""
    (folder / "requirements.txt").write_text("\n".join(requirements))
    return folder


HERE = SimpleNamespace(python=sys.executable)  # the environment that runs this test


def test_what_a_tree_asks_for_and_is_there_is_enough(tmp_path):
    """Above the version that is asked for, for other systems, or left out on purpose: all the same."""
    check_requirements(
        HERE,
        asking(
            tmp_path,
            "pytest>=7.0.0",
            "pytest==7.0.0  # older than the one here",
            "no-such-thing==1; sys_platform == 'other'",
            "torch==99",
            "comfyui-embedded-docs==99",
            "",
            "#non essential dependencies:",
        ),
    )


def test_everything_that_a_tree_asks_for_and_is_not_there_is_named_at_once(tmp_path):
    tree = asking(tmp_path, "no-such-thing>=1.2", "pytest>=9999", "other-thing~=2.0", "pytest")
    with pytest.raises(SetupError) as error:
        check_requirements(HERE, tree)
    said = str(error.value)
    assert "\n" not in said and str(tree) in said
    assert f"pytest>=9999 ({pytest.__version__})" in said
    assert "no-such-thing>=1.2 (not installed), " in said and "other-thing~=2.0 (" in said
    assert "--install" in said
    assert said.endswith("-m pip install 'no-such-thing>=1.2' 'pytest>=9999' 'other-thing~=2.0'")


def test_torch_and_the_heavy_extras_are_left_out_of_the_requirements():
    text = "torch\ntorchsde\ntorchvision>=0.2\n# note\nComfyUI-Workflow-Templates==1\nnumpy>=1.25.0 # why\n\n"
    assert host_packages(text) == ["torchsde", "numpy>=1.25.0"]


def test_a_change_of_requirements_makes_another_environment():
    assert environment_key("numpy") == environment_key("numpy")
    assert environment_key("numpy") != environment_key("numpy>=2")


def test_a_set_up_that_failed_resumes_at_the_failed_step(tmp_path, monkeypatch):
    done, fail = [], {"ComfyUI's requirements"}

    def fake_pip(python, arguments, what, log):
        done.append(what)
        if what in fail:
            raise SetupError("no network")

    monkeypatch.setattr(environments, "run_pip", fake_pip)
    monkeypatch.setattr(environments, "_imports", lambda *_: True)
    environment = Environment(tmp_path / "venv")
    with pytest.raises(SetupError):
        install(environment, "numpy")
    assert done == ["pip", "torch==2.13.0", "torchvision and torchaudio", "ComfyUI's requirements"]
    done.clear(), fail.clear()
    install(environment, "numpy")
    assert done == ["ComfyUI's requirements", "test and training tools"]
    done.clear()
    install(environment, "numpy")
    assert done == []


@pytest.fixture
def added(tmp_path, monkeypatch):
    """An environment on disk, and what was installed into it."""
    installed = []
    monkeypatch.setattr(
        environments, "run_pip", lambda python, arguments, *_: installed.append(arguments[1])
    )
    (tmp_path / "venv").mkdir()
    return Environment(tmp_path / "venv"), installed


def test_templates_are_installed_once_as_the_host_names_them(added):
    environment, installed = added
    for requirements in ("numpy", "comfyui-workflow-templates==1", "comfyui-workflow-templates==1"):
        environments.add_templates(environment, requirements)
    assert installed == ["comfyui-workflow-templates==1"]
    environments.add_templates(environment, "comfyui-workflow-templates==2")
    assert installed[1:] == ["comfyui-workflow-templates==2"]


def test_without_templates_the_server_starts_all_the_same(added, monkeypatch, capsys):
    def fail(*_):
        raise SetupError("no network")

    monkeypatch.setattr(environments, "run_pip", fail)
    environments.add_templates(added[0], "comfyui-workflow-templates==1")
    said = capsys.readouterr().out
    assert said == "ComfyUI's own templates will not be shown: no network\n"


def test_the_type_checker_is_installed_once(added):
    environment, installed = added
    environments.add_types(environment)
    environments.add_types(environment)
    assert installed == [environments.TYPE_CHECKER]


def test_a_python_without_venv_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(
        environments.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else 1
    )
    with pytest.raises(SetupError, match="no ensurepip module: install it"):
        make_environment(tmp_path / "venv")


def test_a_full_disk_is_said_before_work_begins(tmp_path):
    with pytest.raises(SetupError, match=r"needs 1e\+09 GB but .* free"):
        require_space(tmp_path, 1e9, "the environment")


def test_a_stamp_holds_only_for_its_own_key(tmp_path):
    mark_done(tmp_path / "steps" / "torch", "2.13")
    assert is_done(tmp_path / "steps" / "torch", "2.13")
    assert not is_done(tmp_path / "steps" / "torch", "2.14")
    assert not is_done(tmp_path / "steps" / "other", "2.13")


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            [
                "Retrying: NameResolutionError: [Errno -3]",
                "ERROR: No matching distribution found for torch",
            ],
            "cannot reach the package index to fetch torch",
        ),
        (
            [
                "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
            ],
            "no disk space left while installing torch",
        ),
        (
            ["ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE"],
            "expected sha256",
        ),
        (
            ["ERROR: No matching distribution found for torch==9"],
            "the package index has no torch==9",
        ),
        (["some text", "ERROR: it broke"], "pip failed on torch (ERROR: it broke)"),
        ([], "pip failed on torch (no output)"),
    ],
)
def test_each_failure_of_pip_becomes_one_clear_line(output, expected, tmp_path):
    line = explain_failure(output, "torch", tmp_path / "log")
    assert expected in line
    assert "\n" not in line


def test_download_progress_is_shown_in_megabytes():
    activity = describe("Downloading torch-2.13.0.whl (190.0 MB)", "starting")
    assert activity == "downloading torch-2.13.0.whl"
    assert (
        describe("Progress 95000000 of 190000000", activity)
        == "downloading torch-2.13.0.whl: 95 of 190 MB"
    )
    assert describe("Progress 5 of 900", activity) == activity
