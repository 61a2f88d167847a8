"""The page and its interface: /health, /metrics, /api."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, NamedTuple

try:
    from fastapi import FastAPI, HTTPException, Request, Response
    from fastapi import Path as InPath
    from fastapi.exception_handlers import request_validation_exception_handler
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
except ImportError as missing:
    from cddnet.errors import CddnetError

    raise CddnetError(
        f"the page needs {missing.name}, which is not installed: pip install cddnet[node]"
    ) from missing

from pydantic import BaseModel, Field

from cddnet import __version__
from cddnet.errors import CddnetError
from cddnet.node.web.access import COOKIE, SESSION_S, UPLOAD, Access, Guard, Told
from cddnet.node.web.destinations import Change, Changed, DestinationStatus
from cddnet.node.web.pairs import Manifest, Sources, plain
from cddnet.node.web.uploads import (
    Limits,
    UploadRefused,
    UploadResult,
    save_body,
    take_upload,
    upload_folder,
    zipped,
)
from cddnet.node.web.views import NodeSources, SeriesView

KINDS = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
_WRONG_TOKEN_WAIT_S = 1.0

Key = Annotated[str, InPath(min_length=1, max_length=64, pattern=r"^[0-9a-z-]+$")]
Index = Annotated[int, InPath(ge=0, le=10**6)]


class Login(BaseModel, frozen=True, extra="forbid"):
    """What a visitor types."""

    token: str = Field(max_length=1024)


class Session(BaseModel):
    """What the page may offer. first: key of the pair that opens by itself."""

    version: str
    logged_in: bool
    first: str | None
    queue: bool


class Problem(BaseModel):
    """Why a request was refused, in words."""

    detail: str


class Figures(NamedTuple):
    """What machines ask a node for."""

    metrics: Callable[[], str]  # text for Prometheus
    health: Callable[[], Mapping[str, object]]  # what anybody may know


def _refusals(*codes: int) -> dict[int | str, dict[str, object]]:
    return {code: {"model": Problem} for code in (*codes, 401, 403, 421)}


def app(
    sources: Sources,
    access: Access,
    *,
    figures: Figures | None = None,
    limits: Limits | None = None,
    told: Told = lambda event, reason, peer: None,
) -> FastAPI:
    """The page over `sources`; queue, retry, upload and download where these are a node's.

    figures: of a node.  told: hears what was refused and done, for the log.
    """
    page = FastAPI(
        title="cddnet",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    page.add_middleware(Guard, access=access, told=told)

    async def in_words(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, UploadRefused):
            told("request_refused", error.reason, _peer(request))
        return JSONResponse({"detail": plain(str(error))}, getattr(error, "status", 409))

    async def unfit(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        if any(item["type"] == "json_invalid" for item in error.errors()):
            return JSONResponse({"detail": "the body is no JSON"}, 400)
        return await request_validation_exception_handler(request, error)

    page.add_exception_handler(CddnetError, in_words)
    page.add_exception_handler(RequestValidationError, unfit)
    _add_entry(page, sources, access, told)

    @page.get("/health")
    def _health() -> dict[str, object]:
        return {"status": "ok"} if figures is None else dict(figures.health())

    _add_slices(page, sources)
    if isinstance(sources, NodeSources):
        _add_queue(page, sources, told)
        _add_destinations(page, sources)
        _add_exchange(page, sources, limits or Limits(), told)
    if figures is not None:

        @page.get("/metrics", response_class=PlainTextResponse, responses=_refusals())
        def _metrics() -> str:
            return figures.metrics()

    return page


def _peer(request: Request) -> str:
    return request.client.host if request.client else ""


def _add_entry(page: FastAPI, sources: Sources, access: Access, told: Told) -> None:
    files = {
        entry.name: entry.read_bytes()
        for entry in (resources.files("cddnet") / "node" / "web" / "page").iterdir()
        if Path(entry.name).suffix in KINDS
    }

    def file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, "there is no such page")
        return Response(files[name], media_type=KINDS[Path(name).suffix])

    @page.get("/", include_in_schema=False)
    def _home() -> Response:
        return file("index.html" if sources.first is None else "viewer.html")

    @page.get("/view", include_in_schema=False)
    def _view() -> Response:
        return file("viewer.html")

    @page.get("/page/{name}", include_in_schema=False)
    def _page(name: str) -> Response:
        return file(name)

    @page.get("/api/session", responses=_refusals())
    def _session(request: Request) -> Session:
        return Session(
            version=__version__,
            logged_in=access.known(request.headers),
            first=sources.first,
            queue=isinstance(sources, NodeSources),
        )

    @page.post("/api/login", status_code=204, responses=_refusals(400, 413))
    async def _login(login: Login, request: Request) -> Response:
        session = access.session(login.token)
        if session is None:
            told("login_refused", "token", _peer(request))
            await asyncio.sleep(_WRONG_TOKEN_WAIT_S)
            raise HTTPException(401, "the token is wrong", {"WWW-Authenticate": "Bearer"})
        response = Response(status_code=204)
        response.set_cookie(
            COOKIE,
            session,
            max_age=SESSION_S,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    @page.post("/api/logout", status_code=204, responses=_refusals(413))
    def _logout(request: Request) -> Response:
        access.end_session(request.headers)
        response = Response(status_code=204)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response


def _add_slices(page: FastAPI, sources: Sources) -> None:
    @page.get("/api/pairs/{key}", responses=_refusals(404, 409, 410))
    def _manifest(key: Key) -> Manifest:
        try:
            return sources.open(key).manifest()
        except KeyError:
            raise HTTPException(404, "there is no such result (any more)") from None

    @page.get(
        "/api/pairs/{key}/{layer}/{index}",
        response_class=Response,
        responses={
            200: {"content": {"application/octet-stream": {}}},
            **_refusals(404, 409, 410),
        },
    )
    def _slice(key: Key, layer: Key, index: Index) -> Response:
        try:
            stored = sources.pair(key).slice_bytes(layer, index)
        except KeyError:
            raise HTTPException(404, "there is no such slice") from None
        return Response(stored, media_type="application/octet-stream")


def _add_queue(page: FastAPI, sources: NodeSources, told: Told) -> None:
    @page.get("/api/queue", responses=_refusals())
    def _queue() -> list[SeriesView]:
        return sources.queue()

    @page.get("/api/series/{key}", responses=_refusals(404))
    def _series(key: Key) -> SeriesView:
        for series in sources.queue():
            if series.key == key:
                return series
        raise HTTPException(404, "there is no such series (any more)")

    @page.post("/api/series/{key}/retry", responses=_refusals(404, 413))
    def _retry(key: Key, request: Request) -> dict[str, bool]:
        try:
            again = sources.retry(key)
            told("retried", "", _peer(request))
            return {"retried": again}
        except KeyError:
            raise HTTPException(404, "there is no such series (any more)") from None


def _add_destinations(page: FastAPI, sources: NodeSources) -> None:
    @page.get("/api/destinations", responses=_refusals())
    def _destinations() -> list[DestinationStatus]:
        return [] if sources.destinations is None else sources.destinations.view()

    @page.post("/api/destinations", responses=_refusals(400, 404, 409, 413))
    def _change(change: Change) -> Changed:
        try:
            if sources.destinations is None:
                raise KeyError(change.name)
            return sources.destinations.change(change)
        except KeyError:
            raise HTTPException(404, "nothing waits for a destination of that name") from None


def _add_exchange(page: FastAPI, sources: NodeSources, limits: Limits, told: Told) -> None:
    places = asyncio.Semaphore(limits.at_once)

    @page.post(
        UPLOAD,
        responses=_refusals(400, 408, 411, 413, 503, 507),
        openapi_extra={
            "requestBody": {
                "content": {
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
                },
                "description": "one DICOM file, or a zip of them",
            }
        },
    )
    async def _upload(request: Request) -> UploadResult:
        stated = request.headers.get("content-length", "0")
        if not stated.isdecimal() or int(stated) > limits.body_bytes:
            raise UploadRefused("the upload is too large; send it in parts.", 413)
        if places.locked():
            raise UploadRefused("too many uploads at the same time; try again shortly.", 503)
        async with places:
            with upload_folder(sources.folder) as folder:
                await save_body(request.stream(), folder / "body", limits)
                result = await asyncio.to_thread(take_upload, folder / "body", sources.take, limits)
        told("uploaded", "", _peer(request))
        return result

    @page.get(
        "/api/download/{key}.zip",
        response_class=StreamingResponse,
        responses={200: {"content": {"application/zip": {}}}, **_refusals(404, 410)},
    )
    def _download(key: Key, request: Request) -> StreamingResponse:
        try:
            files = sources.results(key)
        except KeyError:
            raise HTTPException(404, "there is no such result (any more)") from None
        told("downloaded", "", _peer(request))
        name = {"Content-Disposition": f'attachment; filename="denoised-{key}.zip"'}
        return StreamingResponse(zipped(files), media_type="application/zip", headers=name)
