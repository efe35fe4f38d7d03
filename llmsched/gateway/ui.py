"""The operator's page: files of `ui/`, as they are. It talks to the API like any other client.

The files hold no data, so they need no key; the page asks for one where the API wants it. The content security policy
lets it load nothing and ask nobody but this gateway, and run no script that is not one of these files.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import NamedTuple

from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from starlette.exceptions import HTTPException

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class _File(NamedTuple):
    body: bytes
    type: str
    tag: str


def install(app: FastAPI) -> None:
    """Serves the page at /ui/, and sends there who comes without a path."""
    known = dict(_read(files("llmsched.gateway") / "ui", ""))

    @app.get("/", include_in_schema=False)
    @app.get("/ui", include_in_schema=False)
    async def to_page() -> Response:
        return RedirectResponse("/ui/", 307, {"Cache-Control": "no-store"})

    @app.get("/ui/{path:path}", include_in_schema=False)
    async def page(path: str, request: Request) -> Response:
        file = known.get(path or "index.html")
        if file is None:
            raise HTTPException(404)
        headers = _HEADERS | {"ETag": file.tag}
        if request.headers.get("if-none-match") == file.tag:
            return Response(status_code=304, headers=headers)
        return Response(file.body, headers=headers, media_type=file.type)


def _read(folder: Traversable, prefix: str) -> list[tuple[str, _File]]:
    """Every file the page is made of, by its path."""
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _read(entry, f"{prefix}{entry.name}/")
        elif (suffix := "." + entry.name.rpartition(".")[2]) in _TYPES:
            body = entry.read_bytes()
            tag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
            found.append((prefix + entry.name, _File(body, _TYPES[suffix], tag)))
    return found
