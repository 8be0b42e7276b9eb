"""What README says to type, typed."""

import json
import re
import shutil
import subprocess
import time

import pytest

from devkit.client import WorkflowError

pytestmark = pytest.mark.server
BASH = shutil.which("bash")


@pytest.mark.skipif(not BASH or not shutil.which("curl"), reason="bash and curl are needed")
def test_the_curl_example_draws_a_picture(server, repository):
    text = (repository / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^curl .*$", text, re.MULTILINE)
    answer = typed(command, server.url, repository)
    assert not answer["node_errors"]
    asking = f"curl -s http://127.0.0.1:8188/history/{answer['prompt_id']}"
    deadline = time.monotonic() + 120
    while not (history := typed(asking, server.url, repository)):
        assert time.monotonic() < deadline, server.log_tail()
        time.sleep(0.5)
    outputs = history[answer["prompt_id"]]["outputs"]
    assert outputs["save"]["images"][0]["filename"].endswith(".png")
    assert json.loads(outputs["report"]["rapid_record"][0])["status"] == "finished"


def test_a_setting_out_of_range_is_refused_with_its_limits(server, repository):
    nodes = json.loads(
        (repository / "example_workflows" / "api" / "demo_flux.json").read_text(encoding="utf-8")
    )
    nodes["accelerate"]["inputs"]["speedup"] = 99.0
    with pytest.raises(WorkflowError, match="speedup") as error:
        server.client.run(nodes)
    assert "99.0" in str(error.value) and "6.0" in str(error.value)


def typed(command: str, url: str, folder) -> dict:
    """JSON that a command of README answers, asked of our server instead of one on the usual
    port."""
    command = command.replace("http://127.0.0.1:8188", url)
    done = subprocess.run(
        [BASH, "-c", command], cwd=folder, capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(done.stdout)
