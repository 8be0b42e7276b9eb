"""dev.py's command line, base folders, server and client."""

import ast
import json
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

from devkit import base_folder, cli, commands, server, testing
from devkit.base_folder import link, make_base_folder, remove_base_folder
from devkit.cache import SetupError, cache_root
from devkit.client import Client, ClientError, WorkflowError, rejection
from devkit.quiet_process import QuietProcess
from devkit.server import ComfyServer, child_environment, is_free, keep_tree_clean, next_free_port
from devkit.testing import planned_runs


def test_an_error_of_the_set_up_is_one_line_and_exit_code_1(monkeypatch, capsys):
    def fail(options):
        raise SetupError("no network")

    monkeypatch.setattr(cli, "prepare", fail)
    assert cli.main(["serve"]) == 1
    assert capsys.readouterr().err == "error: no network\n"


def test_a_wrong_comfyui_folder_ends_with_one_line(repository, tmp_path):
    command = [sys.executable, str(repository / "dev.py"), "serve", "--comfyui", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert result.returncode == 1
    assert result.stderr.startswith("error: --comfyui") and result.stderr.count("\n") == 1


def test_dev_py_can_be_read_by_an_old_python(repository):
    ast.parse((repository / "dev.py").read_text(), feature_version=(3, 4))


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--unknown"],
        ["demo", "--prompts", "0"],
        ["test", "--host", "1.0"],
        ["train", "--processes", "0"],
        ["serve", "--port", "0"],
        ["serve", "--port", "65536"],
        ["test", "--fast", "--all"],
        ["test", "--install"],
        ["test", "--host-tree", ".", "--all"],
        ["test", "--host-tree", ".", "--fast"],
        ["test", "--host-tree", ".", "--host", "0.18.2"],
        ["test", "--host-tree", ".", "--comfyui", "."],
        ["test", "--host-tree", ".", "tests/unit"],
        ["serve", "--host-tree", "."],
        ["frozen"],
    ],
)
def test_wrong_flags_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.parse(arguments)
    assert stop.value.code == 2


def test_an_explicit_host_wins_over_the_environment_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert cli.parse(["serve"]).comfyui == tmp_path
    assert cli.parse(["serve", "--host", "0.18.2"]).comfyui is None


def test_a_host_tree_wins_over_the_environment_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert cli.parse(["test", "--host-tree", "tree"]).comfyui is None


def test_a_host_tree_that_is_none_ends_with_one_line_before_anything_is_made(
    repository, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = [sys.executable, str(repository / "dev.py"), "test", "--host-tree", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert result.returncode == 1
    assert result.stderr.startswith("error: --host-tree") and result.stderr.count("\n") == 1
    assert not list((tmp_path / "cache").rglob("environments"))


@pytest.fixture
def prepared(monkeypatch, tmp_path):
    """prepared(*flags): the ground of `dev.py test` for a ComfyUI folder, what was installed for it,
    and which folder was checked; nothing is fetched."""
    tree = tmp_path / "tree"
    (tree / "comfy").mkdir(parents=True)
    for name in ("main.py", "nodes.py", "requirements.txt"):
        (tree / name).write_text("")
    (tree / "comfyui_version.py").write_text('__version__ = "9.9.9"')
    installed = []
    checked = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        cli, "make_environment", lambda folder, **_: SimpleNamespace(python=1, log=2)
    )
    monkeypatch.setattr(cli, "provide_host", lambda name, *_: tmp_path / name)
    monkeypatch.setattr(
        cli, "provide_environment", lambda *given, pinned: installed.append((given[1], pinned))
    )
    monkeypatch.setattr(cli, "check_requirements", lambda _, tree: checked.append(tree))

    def prepare(*flags):
        ground = cli.prepare(cli.parse(["test", "--host-tree", str(tree), *flags]))
        assert ground.hosts == {"9.9.9": tree}
        return installed.pop(), checked

    return prepare, tree, tmp_path


def test_a_host_tree_is_run_in_the_newest_releases_environment_and_checked(prepared):
    prepare, tree, folder = prepared
    assert prepare() == ((folder / "0.30.0", True), [tree])


def test_with_install_a_host_tree_has_an_environment_of_its_own(prepared):
    prepare, tree, _ = prepared
    assert prepare("--install") == ((tree, False), [])


def test_only_a_run_of_everything_takes_an_older_host():
    assert cli.wanted_hosts(cli.parse(["test"])) == ["0.30.0"]
    assert cli.wanted_hosts(cli.parse(["test", "--fast"])) == ["0.30.0"]
    assert cli.wanted_hosts(cli.parse(["test", "--all"])) == ["0.30.0", "0.16.3"]
    assert cli.wanted_hosts(cli.parse(["test", "--all", "--host", "0.26.0"])) == ["0.26.0"]


def runs_of(arguments, *hosts):
    """(host, paths, flags) of what `dev.py test` would run; hosts: the main one first."""
    runs = planned_runs(cli.parse(["test", *arguments]), list(hosts or ["main"]))
    return [(run.host, list(run.paths), list(run.flags)) for run in runs]


def test_by_default_unit_tests_run_that_are_not_slow_and_others_that_are_quick():
    assert runs_of([]) == [
        ("main", ["tests/unit"], ["-m", "not slow"]),
        ("main", ["tests/integration", "tests/browser"], ["-m", "quick"]),
    ]
    assert runs_of(["--fast"]) == [("main", ["tests/unit"], [])]


def test_tests_that_are_named_are_run_and_no_others():
    options = cli.parse(["test", "-k", "nodes", "tests/unit", "-x"])
    assert testing.flags(options) == ["-k", "nodes", "-x"]
    assert runs_of(["-k", "nodes", "tests/unit", "-x"]) == [("main", ["tests/unit"], [])]
    one = "tests/integration/test_ground.py::test_same_seed_same_picture"
    assert runs_of([one]) == [("main", [one], [])]
    assert runs_of(["--all", one, "tests/unit"], "main", "old") == [
        ("old", [one], ["-m", "not main_host"]),
        ("main", [one, "tests/unit"], []),
    ]
    assert runs_of(["--all", "tests/unit"], "main", "old") == [("main", ["tests/unit"], [])]


def test_a_host_tree_has_the_integration_tests_alone(monkeypatch, repository):
    monkeypatch.setattr(testing.os, "cpu_count", lambda: 1)
    ((host, paths, flags),) = runs_of(["--host-tree", "tree"], "0.46.0")
    there = {path.name for path in repository.glob("tests/integration/test_*.py")}
    assert host == "0.46.0" and flags == ["-m", "not main_host"]
    assert {path.removeprefix("tests/integration/") for path in paths} == there
    one = "tests/integration/test_models.py"
    assert runs_of(["--host-tree", "tree", one, "-x"], "0.46.0") == [("0.46.0", [one], [])]


@pytest.mark.parametrize("cores, workers", [(1, []), (2, ["-n", "2"]), (64, ["-n", "4"])])
def test_everything_is_shared_out_over_the_cores(monkeypatch, cores, workers):
    monkeypatch.setattr(testing.os, "cpu_count", lambda: cores)
    older, main = runs_of(["--all"], "main", "old")
    assert older[0] == "old" and older[2][:2] == ["-m", "not main_host"]
    assert older[2][2:4] == main[2][:2] == workers
    assert {path.split("/")[1] for path in older[1]} == {"integration"}
    assert main[0] == "main" and main[1][: len(older[1])] == older[1]


def test_everything_is_every_file_once_the_long_ones_first_and_the_browser_last(repository):
    ((_, paths, _),) = runs_of(["--all"])
    there = [
        path.relative_to(repository).as_posix() for path in repository.glob("tests/*/test_*.py")
    ]
    assert sorted(paths) == sorted(there)
    assert paths[0].startswith("tests/integration/test_training")
    folders = [path.split("/")[1] for path in paths]
    assert folders == sorted(folders, key=["integration", "unit", "browser"].index)


def test_what_is_handed_on_is_not_taken_for_an_abbreviation():
    assert cli.parse(["train", "--mode", "average", "--process", "2"]).rest == [
        "--mode",
        "average",
        "--process",
        "2",
    ]
    assert cli.parse(["bench", "policy", "--com", "x"]).rest == ["--com", "x"]


def test_a_base_folder_links_the_pack_and_its_removal_spares_it(tmp_path, monkeypatch):
    pack = tmp_path / "repository"
    pack.mkdir()
    (pack / "__init__.py").write_text("")
    monkeypatch.setattr(base_folder, "PACKS", {"rapid": pack, "absent": tmp_path / "absent"})
    base = make_base_folder(tmp_path / "base")
    assert (base / "custom_nodes" / "rapid" / "__init__.py").is_file()
    assert not (base / "custom_nodes" / "absent").exists()
    assert (base / "models" / "diffusion_models").is_dir()
    make_base_folder(base)  # again, as `serve` does
    remove_base_folder(base)
    assert not base.exists()
    assert (pack / "__init__.py").is_file()


def test_where_links_are_forbidden_the_pack_is_copied(tmp_path, monkeypatch):
    (tmp_path / "pack" / "tests").mkdir(parents=True)
    (tmp_path / "pack" / "__init__.py").write_text("")

    def refuse(*_, **__):
        raise OSError("not allowed")

    monkeypatch.setattr(base_folder.Path, "symlink_to", refuse)
    monkeypatch.setattr(base_folder.sys, "platform", "linux")
    link(tmp_path / "pack", tmp_path / "copy")
    assert (tmp_path / "copy" / "__init__.py").is_file()
    assert not (tmp_path / "copy" / "tests").exists()


def test_a_foreign_comfyui_tree_gets_no_compiled_files(tmp_path):
    assert "PYTHONDONTWRITEBYTECODE" in keep_tree_clean({}, tmp_path)
    assert keep_tree_clean({}, cache_root() / "hosts" / "0.30.0") == {}


def test_children_do_not_inherit_the_python_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "somewhere")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert "PYTHONPATH" not in child_environment()
    assert "OMP_NUM_THREADS" not in child_environment()
    assert child_environment(threads=1)["OMP_NUM_THREADS"] == "1"


def test_a_server_that_dies_shows_its_last_words(tmp_path):
    (tmp_path / "main.py").write_text("import sys; print('cannot find my feet'); sys.exit(3)")
    with pytest.raises(SetupError, match=r"code 3 while starting:\n.*cannot find my feet"):
        ComfyServer(tmp_path, make_base_folder(tmp_path / "base")).start()


FAILED = [
    ["execution_start", {}],
    ["execution_error", {"node_type": "KSampler", "exception_message": "too big\n"}],
]
HISTORY = {
    "good": {
        "status": {"status_str": "success"},
        "outputs": {"9": {"images": [{"filename": "a.png"}]}},
    },
    "bad": {"status": {"status_str": "error", "messages": FAILED}, "outputs": {}},
    "stopped": {
        "status": {
            "status_str": "error",
            "messages": [["execution_interrupted", {"node_type": "VAE"}]],
        }
    },
}


class Answers(BaseHTTPRequestHandler):
    """Answers as ComfyUI does."""

    def do_GET(self):
        name = self.path.split("/")[-1]
        self.reply(200, b"picture" if self.path.startswith("/view?") else {name: HISTORY.get(name)})

    def do_POST(self):
        graph = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"]
        self.reply(200, {"prompt_id": graph["id"]}) if "id" in graph else self.reply(400, REJECTED)

    def reply(self, status, content):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content if isinstance(content, bytes) else json.dumps(content).encode())

    def log_message(self, *_):
        pass


FAULT = {"message": "Value not in list", "details": "sampler_name: 'x'"}
REJECTED = {
    "error": {"message": "Prompt outputs failed validation"},
    "node_errors": {"3": {"class_type": "KSampler", "errors": [FAULT]}},
}


@pytest.fixture
def client():
    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Client(f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()


def test_the_outputs_of_a_finished_workflow_come_back(client, tmp_path):
    outputs = client.run({"id": "good"}, timeout=5)
    assert [path.read_bytes() for path in client.save_images(outputs, tmp_path / "out")] == [
        b"picture"
    ]


def test_a_failed_node_is_named_with_its_message(client):
    with pytest.raises(WorkflowError, match="KSampler failed: too big") as failure:
        client.run({"id": "bad"}, timeout=5)
    assert (failure.value.node_type, failure.value.exception_message) == ("KSampler", "too big")


def test_an_interrupted_workflow_says_so(client):
    with pytest.raises(WorkflowError, match="interrupted in VAE"):
        client.run({"id": "stopped"}, timeout=5)


def test_a_rejected_workflow_names_node_and_fault(client):
    with pytest.raises(WorkflowError, match=r"KSampler: Value not in list \(sampler_name: 'x'\)"):
        client.run({}, timeout=5)


def test_a_rejection_in_another_form_is_still_an_error():
    assert "<html>" in str(rejection("<html>"))


def test_a_workflow_that_never_ends_times_out(client):
    with pytest.raises(ClientError, match="did not finish within 0 s"):
        client.wait("unknown", timeout=0.2)


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(ClientError, match="http://127.0.0.1:9/system_stats cannot be reached"):
        Client("http://127.0.0.1:9").system_stats()


def test_serve_says_why_it_ended(tmp_path, monkeypatch, capsys):
    """A server that ends by itself is an error, with the end of its log."""

    class Ended:
        url, log_tail = "http://x", staticmethod(lambda: "last words")
        process = SimpleNamespace(poll=lambda: 1)
        __enter__ = __exit__ = lambda self, *_: None

    monkeypatch.setattr(commands, "ComfyServer", lambda *_, **__: Ended())
    ground = SimpleNamespace(
        cache=tmp_path, hosts={"0.30.0": tmp_path}, tree=tmp_path, python=sys.executable
    )
    with pytest.raises(SetupError, match="last words"):
        commands.serve(ground, SimpleNamespace(port=1))


@pytest.fixture
def taken():
    """A port that somebody listens on, on all addresses."""
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        yield other.getsockname()[1]


def test_serve_takes_the_next_port_where_comfyui_runs_already(taken):
    assert not is_free(taken)
    assert taken < next_free_port(taken) < taken + server.PORTS_TO_TRY


def test_no_free_port_at_all_is_an_error(monkeypatch):
    monkeypatch.setattr(server, "is_free", lambda port: False)
    with pytest.raises(SetupError, match="no port from 8188 to 8287 is free"):
        next_free_port(8188)


def test_a_port_that_was_given_and_is_taken_is_an_error(tmp_path, taken):
    running = ComfyServer(tmp_path, make_base_folder(tmp_path / "base"), port=taken)
    with pytest.raises(SetupError, match=f"port {taken} cannot be used"):
        running.start()


def test_processes_beside_each_other_are_shown_one_after_the_other(tmp_path, capsys):
    def speaker(name, seconds, code):
        return [
            sys.executable,
            "-c",
            f"import sys, time; print('{name} begins', flush=True); time.sleep({seconds}); "
            f"print('{name} ends'); sys.exit({code})",
        ]

    with (
        QuietProcess(speaker("fast", 0, 3), tmp_path, None) as fast,
        QuietProcess(speaker("slow", 1, 0), tmp_path, None) as slow,
    ):
        assert (slow.show(), fast.show()) == (0, 3)
    assert capsys.readouterr().out.split("\n") == [
        "slow begins",
        "slow ends",
        "fast begins",
        "fast ends",
        "",
    ]


def test_a_process_that_nobody_waited_for_is_ended(tmp_path):
    with QuietProcess(
        [sys.executable, "-c", "import time; time.sleep(600)"], tmp_path, None
    ) as quiet:
        pass
    assert quiet.process.returncode not in (None, 0)


@pytest.fixture
def tested(monkeypatch, tmp_path):
    """tested(cores, codes, *flags): exit code of `dev.py test` where pytest only says its command
    line and ends with codes["unit"] or codes["quick"]."""

    def test(cores, codes, *flags):
        monkeypatch.setattr(testing.os, "cpu_count", lambda: cores)
        monkeypatch.setattr(testing, "provide_browser", lambda python: None)
        monkeypatch.setattr(testing, "failed_linters", lambda *_, **__: [])
        script = tmp_path / "python"
        lines = [f'case "$*" in *{word}*) exit {code};; esac' for word, code in codes.items()]
        script.write_text("\n".join(["#!/bin/sh", 'echo "$@"', *lines]))
        script.chmod(0o755)
        ground = SimpleNamespace(python=script, hosts={"9": tmp_path}, tree=tmp_path)
        return testing.test(ground, cli.parse(["test", *flags]))

    return test


@pytest.mark.parametrize("cores", [1, 2])
def test_runs_are_shown_one_after_the_other_and_the_real_host_closes_the_output(
    tested, capfd, cores
):
    assert tested(cores, {}, "-q") == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if not line.startswith("==")]
    assert lines == [
        "-m pytest tests/unit -m not slow -q",
        "-m pytest tests/integration tests/browser -m quick -q",
    ]


@pytest.mark.parametrize(
    "unit, quick, code, said",
    [
        (0, 0, 0, ""),
        (5, 0, 0, ""),  # 5: no tests there
        (5, 5, 1, ""),
        (0, 1, 1, ""),  # pytest's own closing line says it
        (1, 0, 1, "failed: pytest tests/unit -m not slow on ComfyUI 9"),
    ],
)
def test_a_failure_anywhere_is_one(tested, capfd, unit, quick, code, said):
    assert tested(2, {"unit": unit, "quick": quick}) == code
    assert ("failed" in capfd.readouterr().out.splitlines()[-1]) == bool(said)
    if said:
        tested(2, {"unit": unit, "quick": quick})
        assert capfd.readouterr().out.splitlines()[-1] == said


def test_suites_of_the_bench_command_begin_without_the_host():
    """They are imported before ComfyUI is."""
    code = f"import sys; from benchmarks import {', '.join(cli.SUITES)}; assert 'comfy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=base_folder.REPOSITORY)
