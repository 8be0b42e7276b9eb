"""A small client of ComfyUI's HTTP API, with polling instead of a websocket library."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any


class ClientError(RuntimeError):
    """The server cannot be reached, or refuses a request."""


class WorkflowError(ClientError):
    """A workflow was rejected or failed in a node; says which node and why."""

    def __init__(
        self, message: str, node_type: str | None = None, exception_message: str | None = None
    ):
        super().__init__(message)
        self.node_type, self.exception_message = node_type, exception_message


class Client:
    """Talks to one ComfyUI server, e.g. Client("http://127.0.0.1:8188")."""

    def __init__(self, url: str, timeout: float = 30.0):
        self.url, self.timeout = url.rstrip("/"), timeout
        self.client_id = uuid.uuid4().hex
        # A proxy of the user's environment must not see requests to this machine.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def _request(self, path: str, data: dict | None = None) -> bytes:
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(
            self.url + path, data=body, headers={"Content-Type": "application/json"}
        )
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            text = error.read().decode("utf-8", errors="replace")
            if path == "/prompt":
                raise rejection(text) from None
            raise ClientError(f"{path} answered {error.code}: {text[:500]}") from None
        except (OSError, http.client.HTTPException) as error:
            raise ClientError(f"{self.url}{path} cannot be reached: {error}") from None

    def system_stats(self) -> dict[str, Any]:
        """Versions and devices of the server."""
        return json.loads(self._request("/system_stats"))

    def object_info(self) -> dict[str, Any]:
        """All node types with their inputs and outputs."""
        return json.loads(self._request("/object_info"))

    def interrupt(self) -> None:
        """Stop the workflow that runs now."""
        self._request("/interrupt", {})

    def submit(self, graph: dict[str, Any]) -> str:
        """Queue an API workflow; returns its prompt id, raises WorkflowError when it is
        rejected."""
        return json.loads(self._request("/prompt", {"prompt": graph, "client_id": self.client_id}))[
            "prompt_id"
        ]

    def wait(self, prompt_id: str, timeout: float = 3600.0, poll: float = 0.1) -> dict[str, Any]:
        """The history entry of a finished workflow; raises WorkflowError when a node failed."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            entry = json.loads(self._request(f"/history/{prompt_id}")).get(prompt_id)
            if entry and entry.get("status", {}).get("status_str"):
                raise_on_failure(entry)
                return entry
            time.sleep(poll)
        raise ClientError(f"workflow {prompt_id} did not finish within {timeout:.0f} s")

    def run(self, graph: dict[str, Any], timeout: float = 3600.0) -> dict[str, Any]:
        """Run an API workflow; returns {node id: outputs}, e.g. {"9": {"images": [...]}}."""
        return self.wait(self.submit(graph), timeout)["outputs"]

    def image(self, item: dict[str, str]) -> bytes:
        """The bytes of one item of an `images` output."""
        keys = ("filename", "subfolder", "type")
        return self._request(
            "/view?" + urllib.parse.urlencode({key: item.get(key, "") for key in keys})
        )

    def save_images(self, outputs: dict[str, Any], folder: Path) -> list[Path]:
        """Download every image of `run`'s result into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for item in (item for output in outputs.values() for item in output.get("images", [])):
            path = folder / item["filename"]
            path.write_bytes(self.image(item))
            paths.append(path)
        return paths


def rejection(text: str) -> WorkflowError:
    """The error for a workflow that /prompt did not accept, naming the nodes and their faults."""
    try:
        answer = json.loads(text)
    except ValueError:
        return WorkflowError(f"workflow rejected: {text[:500]}")
    error = answer.get("error", {})
    message = error.get("message", text[:500]) if isinstance(error, dict) else str(error)
    faults, first = [], None
    for node in (answer.get("node_errors") or {}).values():
        first = first or node.get("class_type")
        for fault in node.get("errors", []):
            faults.append(
                f"{node.get('class_type')}: {fault.get('message')} ({fault.get('details')})"
            )
    return WorkflowError(
        "workflow rejected: " + "; ".join([message, *faults]), first, "; ".join(faults) or message
    )


def raise_on_failure(entry: dict[str, Any]) -> None:
    """Raise WorkflowError when a history entry tells of a failed or interrupted run."""
    status = entry["status"]
    if status["status_str"] == "success":
        return
    for kind, details in status.get("messages", []):
        if kind == "execution_error":
            node, message = (
                details.get("node_type"),
                str(details.get("exception_message", "")).strip(),
            )
            raise WorkflowError(f"{node} failed: {message}", node, message)
        if kind == "execution_interrupted":
            node = details.get("node_type")
            raise WorkflowError(f"interrupted in {node}", node, "interrupted")
    raise WorkflowError(f"workflow ended with status {status['status_str']}")
