"""What the page asks RAPID for over HTTP: the list of what was learned of models, to forget an entry of
it, and to save a run's timeline as a policy file."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import folder_paths
from safetensors import SafetensorError

from ..calibration.library import Entry
from ..policy_file.format import PolicyError
from ..policy_file.names import SUFFIX
from ..policy_file.saved import NotSaved, checked_name, is_saved, save
from ..reasons import ReasonCode, to_json
from ..types import Reason
from .learning import FOLDER, library
from .progress import running_server

PATH = "/rapid/learned"
POLICIES = "/rapid/policies"


def add_routes() -> None:
    """Answer these paths, where this process is a server. Called once, while packs are loaded."""
    server = running_server()
    if server is None:
        return
    from aiohttp import web  # the host's server is there, and so is what it is made of

    @server.routes.get(PATH)
    async def learned(_request: web.Request) -> web.Response:
        entries = await asyncio.to_thread(lambda: library().entries())
        return web.json_response([as_json(entry) for entry in entries])

    @server.routes.delete(f"{PATH}/{{name}}")
    async def forget(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        try:
            await asyncio.to_thread(lambda: library().remove(name))
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=404)
        except OSError as error:
            return web.json_response({"error": error.strerror or str(error)}, status=500)
        return web.json_response({})

    @server.routes.post(POLICIES)
    async def save_policy(request: web.Request) -> web.Response:
        try:
            given = await request.json()
        except ValueError:
            given = None
        status, answer = await asyncio.to_thread(lambda: saved(given))
        return web.json_response(answer, status=status)


def saved(given: Any) -> tuple[int, dict[str, Any]]:
    """Save the timeline of a record under a name: given has `name`, `record` (JSON form) and may have
    `replace`. HTTP status, and `file` and the highest `speedup` to replay it at; or `reason`, with 409
    where the name is taken."""
    wanted = given if isinstance(given, dict) else {}
    try:
        name = checked_name(wanted.get("name"))
        other = folder_paths.get_full_path(FOLDER, name + SUFFIX)  # the pack's own, too
        folder = Path(folder_paths.models_dir) / FOLDER
        if other is not None and not is_saved(Path(other)):
            raise NotSaved(Reason(ReasonCode.SAVE_TAKEN, file=name + SUFFIX))
        file, speedup = save(folder, name, wanted.get("record"), wanted.get("replace") is True)
    except NotSaved as error:
        taken = error.reason.code in (ReasonCode.SAVE_EXISTS.value, ReasonCode.SAVE_TAKEN.value)
        return 409 if taken else 400, {"reason": to_json(error.reason), "error": str(error)}
    except (OSError, SafetensorError, PolicyError) as error:
        reason = Reason(
            ReasonCode.SAVE_FAILED, error=getattr(error, "strerror", None) or str(error)
        )
        return 500, {"reason": to_json(reason), "error": str(error)}
    return 200, {"file": file.name, "speedup": speedup}


def as_json(entry: Entry) -> dict[str, Any]:
    """What the page shows of an entry."""
    key = entry.key
    return {
        "name": entry.name,
        "size": entry.size,
        "modified": entry.modified,
        "pictures": entry.pictures,
        "error": entry.error,
        "family": key.family if key else None,
        "patched": bool(key and key.patches),
        "sampler": key.sampler if key else None,
        "steps": len(key.sigmas) - 1 if key else None,
        "guidance": key.guidance.replace("CFGGuider", "cfg") if key else None,
        "turns": key.turns if key else None,
    }
