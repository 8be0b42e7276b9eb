"""The pack as the registry ships it, in a ComfyUI of its own with the Manager switched on."""

import importlib.util
import json
import shutil
import zipfile

import pytest

from devkit.base_folder import REPOSITORY, make_base_folder
from devkit.comfy_process import host_tree
from devkit.server import ComfyServer
from devkit.templates import TEMPLATES
from rapid_testing.archive import pack

pytestmark = pytest.mark.server
MOST = 4 * 2**20  # bytes of the archive


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A running server whose only copy of this pack came out of the archive. Beside it are the
    demo's nodes, models and policies, which are not in the archive, since something has to be drawn
    with."""
    base = make_base_folder(tmp_path_factory.mktemp("installed"))
    folder = base / "custom_nodes" / "rapid"
    folder.unlink()  # the link to the repository
    archive = pack(REPOSITORY, base / "node.zip")
    assert archive.stat().st_size < MOST
    zipfile.ZipFile(archive).extractall(folder)
    shutil.copytree(REPOSITORY / "policies", base / "models" / "rapid_policies")
    extra = (
        ("--enable-manager",)
        if importlib.util.find_spec("comfyui_manager") and shutil.which("git")
        else ()
    )
    with ComfyServer(host_tree(), base, threads=1, extra=extra) as running:
        yield running


def test_unpacked_beside_the_manager_it_starts_and_draws(installed):
    log = installed.log.read_text(encoding="utf-8", errors="replace")
    failed = [
        line for line in log.splitlines() if "IMPORT FAILED" in line and "custom_nodes" in line
    ]
    assert "ComfyUI-Manager" in log and failed == [], installed.log_tail(80)
    ours = [line for line in log.splitlines() if "custom_nodes/rapid" in line or "RAPID" in line]
    # Silent: what is there is ComfyUI's own list of how long imports took.
    assert ours != [] and [line for line in ours if " seconds: " not in line] == []
    info = installed.client.object_info()
    assert len([name for name in info if name.startswith("RAPID_")]) == 11
    nodes = json.loads(
        (REPOSITORY / "example_workflows" / "api" / "demo_policy.json").read_text(encoding="utf-8")
    )
    nodes["latent"]["inputs"].update(width=128, height=128)
    outputs = installed.client.run(nodes)
    totals = json.loads(outputs["report"]["rapid_record"][0])["totals"]
    assert totals["computed"] == 7 and totals["evaluations"] == 28


def test_its_pages_words_and_examples_are_served(installed):
    fetch = installed.client._request
    assert b"registerExtension" in fetch("/extensions/rapid/report.js")
    assert b"RAPID Report" in fetch("/extensions/rapid/docs/RAPID_Report.md")
    assert fetch("/extensions/rapid/docs/images/RAPID_Report.png")[:4] == b"\x89PNG"
    assert b"RAPID Report" in fetch("/extensions/rapid/docs/RAPID_Report/en.md")
    templates = json.loads(fetch("/workflow_templates"))["rapid"]
    assert sorted(templates) == sorted(one.title for one in TEMPLATES if not one.demo)
    assert "RAPID_Report" in json.loads(fetch("/i18n"))["zh"]["nodeDefs"]
