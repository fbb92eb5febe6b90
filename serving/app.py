"""The HTTP service: the paths for clients, the page, and the JSON that the page reads. Shapes and status codes only."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.cards import Card, Cards
from serving.engine import History
from serving.events import EventLog
from serving.metrics import Metrics
from serving.ranges import NotSatisfiable, readable
from serving.service import Answer, Recommender
from serving.service import Request as FeedRequest
from serving.stats import Stats

BODY_BYTES: Final = 1 << 20
VIDEO_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,200}")
IDS: Final = re.compile(r"-?[0-9]{1,19}(,-?[0-9]{1,19})*")
PAGE: Final = Path(__file__).parent / "page"

Body = TypeVar("Body")


class Posted(msgspec.Struct, frozen=True):
    """Body of `POST /events`; each event is checked by itself, so that a bad one rejects nothing but itself."""

    events: list[msgspec.Raw]


@dataclass
class Parts:
    """What the service is made of."""

    recommender: Recommender
    events: EventLog
    history: History
    cards: Callable[[], Cards | None]
    stats: Stats
    metrics: Metrics
    videos: Path


Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create(parts: Parts, lifespan: Lifespan | None = None) -> FastAPI:
    """The application. `lifespan` starts and stops what runs beside it."""
    app = FastAPI(title="sidstream", version="1", lifespan=lifespan or _nothing, docs_url=None, redoc_url=None)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": f"{type(error).__name__}: this is a defect; the log has its trace"}, 500)

    app.add_middleware(_Counted, metrics=parts.metrics)
    _contract(app, parts)
    _page(app, parts)
    return app


def _contract(app: FastAPI, parts: Parts) -> None:
    schemas, components = msgspec.json.schema_components([FeedRequest, Answer], ref_template="#/components/schemas/{name}")
    errors: dict[int | str, dict[str, Any]] = {422: {"description": "Wrong shape"}, 413: {"description": "Too large"}}

    @app.post("/recommend", openapi_extra=_body(schemas[0]), responses={200: _answer(schemas[1]), **errors})
    async def recommend(request: Request) -> Response:
        """A feed for a person. Always 200 where the body has the right shape; `degraded` says what was missing."""
        answer = await parts.recommender.recommend(await _read(request, _feed_request.decode))
        return Response(msgspec.json.encode(answer), media_type="application/json")

    @app.post("/events", status_code=202, openapi_extra=_body(_EVENTS_SCHEMA), responses=errors)
    async def events(request: Request) -> Response:
        """Events of a client that cannot speak Kafka; answers once Kafka has them. An event may be sent again: its id counts once."""
        posted = await _read(request, _events)
        accepted, rejected = await parts.events.post(posted.events, time.time_ns() // 1_000_000)
        return JSONResponse({"accepted": accepted, "rejected": [asdict(one) for one in rejected]}, 202)

    @app.head("/videos/{name}", include_in_schema=False)  # one description: a second would repeat the operation's id
    @app.get("/videos/{name}", response_class=FileResponse, responses={code: {"description": text} for code, text in _VIDEO.items()})
    async def video(name: str, request: Request) -> Response:
        """A generated video, with ranges."""
        path = parts.videos / name
        if not VIDEO_NAME.fullmatch(name) or path.is_symlink() or not path.is_file():
            raise HTTPException(404, f"no video {name[:80]!r}")
        if "range" in request.headers:
            _keep_readable_ranges(request, path.stat().st_size)
        return FileResponse(path, media_type="video/mp4", headers={"Cache-Control": "public, max-age=31536000, immutable"})

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process lives."""
        return {"status": "ok"}

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        """What serves, and which parts answer; 503 only while there is nothing at all to serve."""
        serving, codebook = parts.stats.model.serving, parts.stats.codebook()
        missing = [name for name, alive in parts.stats.health.items() if not alive]
        status = "starting" if codebook is None else "degraded" if missing or serving is None else "ready"
        return JSONResponse(
            {
                "status": status,
                "model_version": serving.policy.version if serving else None,
                "bundle_version": codebook.version if codebook else None,
                "missing": missing + (["model"] if serving is None else []),
            },
            503 if codebook is None else 200,
        )

    @app.head("/metrics", include_in_schema=False)
    @app.get("/metrics")
    def metrics() -> Response:
        """Prometheus metrics."""
        return Response(parts.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    build = app.openapi

    def openapi() -> dict[str, Any]:
        document = build()
        document.setdefault("components", {}).setdefault("schemas", {}).update(components)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _page(app: FastAPI, parts: Parts) -> None:
    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> RedirectResponse:
        return RedirectResponse("/page/icon.svg")

    @app.get("/posters/{item_id}.svg", include_in_schema=False)
    def poster(item_id: int) -> Response:
        cards = parts.cards()
        if cards is None or not -(2**63) <= item_id < 2**63:
            raise HTTPException(404, "no such item")
        return Response(cards.poster(item_id), media_type="image/svg+xml", headers={"Cache-Control": "public, max-age=3600"})

    @app.get("/api/stats")
    def stats(seconds: Annotated[int, Query(ge=10, le=900)] = 300, step: Annotated[int, Query(ge=1, le=60)] = 2) -> Response:
        """Everything that the page shows, live."""
        return Response(msgspec.json.encode(parts.stats.snapshot(seconds=seconds, step=step)), media_type="application/json")

    @app.get("/api/users")
    def users(count: Annotated[int, Query(ge=1, le=100)] = 12) -> dict[str, list[int]]:
        """People seen lately."""
        recent = [*reversed(list(parts.stats.live.users)), *parts.recommender.feeds.users(count)]
        return {"users": list(dict.fromkeys(recent))[:count]}

    @app.get("/api/users/{user_id}")
    def user(user_id: int) -> Response:
        """A person's last interactions, newest first, each with the card of its video."""
        try:
            entries, missing = parts.history.histories([user_id])[0], None
        except Exception as error:
            entries, missing = [], f"features: {type(error).__name__}"
        history = [{"entry": entry, "card": _card(parts, entry.item_id)} for entry in entries]
        return Response(msgspec.json.encode({"user_id": user_id, "missing": missing, "history": history}), media_type="application/json")

    @app.get("/api/cards")
    def cards(ids: Annotated[str, Query(max_length=4_000)]) -> Response:
        """Cards of videos, by comma-separated item ids."""
        if not IDS.fullmatch(ids):
            raise HTTPException(422, "ids: expected numbers with commas between them")
        found = [_card(parts, int(item)) for item in ids.split(",")]
        return Response(msgspec.json.encode(found), media_type="application/json")

    app.mount("/page", StaticFiles(directory=PAGE), name="page")


def _card(parts: Parts, item_id: int) -> Card | None:
    cards = parts.cards()
    return cards.card(item_id) if cards is not None else None


_feed_request = msgspec.json.Decoder(FeedRequest)
_posted = msgspec.json.Decoder(Posted)

_EVENTS_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["events"],
    "properties": {
        "events": {
            "type": "array",
            "items": {"type": "object", "required": ["topic", "schema", "event_id", "user_id", "ts"], "additionalProperties": True},
        }
    },
}


def _events(body: bytes) -> Posted:
    """The events of a body. A text that JSON allows and UTF-8 cannot hold (half of a surrogate pair) is one event's fault, not the body's.

    Raises:
        msgspec.DecodeError: the body as a whole is something else.
    """
    try:
        return _posted.decode(body)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        try:
            found = json.loads(body, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or not isinstance(found.get("events"), list):
            raise
        return Posted([msgspec.Raw(json.dumps(event).encode()) for event in found["events"]])


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


async def _read(request: Request, decode: Callable[[bytes], Body]) -> Body:
    """The request's body, at most `BODY_BYTES` of it."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES:
            raise HTTPException(413, f"the body is larger than {BODY_BYTES} bytes")
    try:
        return decode(bytes(body))
    except (msgspec.DecodeError, RecursionError) as error:
        raise HTTPException(422, str(error)[:500]) from error


_VIDEO: Final = {206: "Ranges of it", 404: "No such video", 416: "No byte of it is in the ranges"}


def _keep_readable_ranges(request: Request, size: int) -> None:
    """Leave of the request's ranges what can be answered."""
    try:
        ranges = readable(request.headers["range"], size)
    except NotSatisfiable:
        raise HTTPException(416, f"no byte of the range is in the {size} of the video", {"Content-Range": f"bytes */{size}"}) from None
    others = [header for header in request.scope["headers"] if header[0] != b"range"]
    request.scope["headers"] = others + ([(b"range", ranges.encode())] if ranges else [])


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _answer(schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": "A feed", "content": {"application/json": {"schema": schema}}}


class _Counted:
    """Counts requests by route and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self._metrics.requests.labels(route, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)


@asynccontextmanager
async def _nothing(app: FastAPI) -> AsyncIterator[None]:
    yield
