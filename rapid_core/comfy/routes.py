"""What the page asks RAPID for over HTTP: the list of what was learned of models, and to forget an
entry of it."""

from __future__ import annotations

import asyncio
from typing import Any

from ..calibration.library import Entry
from .learning import library
from .progress import running_server

PATH = "/rapid/learned"


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
    }
