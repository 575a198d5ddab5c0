"""The search page and its JSON endpoints. FastAPI, because it checks and documents inputs from their types (OpenAPI).

Nothing but the page's own files and pictures of the collection can be fetched, and pictures only by id, decoded and
written anew.
"""

from __future__ import annotations

import asyncio
import hmac
import io
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from PIL import Image
from pydantic import BaseModel, Field

from dataset.decode import decode_image, open_image
from dataset.files import BadRecord
from tasks.search_engine import Answer, SearchEngine, TooBusy
from tasks.search_engine import Query as Search

PAGE = Path(__file__).with_name("page")
STATIC = {"search.css": "text/css", "search.js": "text/javascript", "icon.svg": "image/svg+xml"}
OPEN_PATHS = tuple(f"/static/{name}" for name in STATIC)  # without a token
COOKIE = "rosetta_token"
SIDES = {"small": 320, "large": 1280}  # the longest side of a picture that is sent, in pixels
MAX_KEPT_THUMBNAILS = 4096
MAX_JSON_BYTES = 64 * 1024
FORM_BYTES = 4096  # the frame of a form around its file
DRAINED_BYTES = 64 << 20  # of a body that is too long
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass
class Limits:
    """What a request may ask for."""

    upload_bytes: int
    pixels: int
    text_length: int
    num_results: int
    num_candidates: int
    seconds: float


class TextSearch(BaseModel):
    """A search by words of any language."""

    text: str = Field(description="what to look for, in any language that the model knows")
    k: int | None = Field(None, ge=1, description="number of results")
    rerank: int | None = Field(None, ge=0, description="candidates that the fusion stack scores again; 0: none")


class Result(BaseModel):
    """One picture."""

    id: str
    name: str
    captions: dict[str, str]
    score: float = Field(description="what orders the results; only of use beside the others")
    similarity: float
    match: float | None = Field(None, description="probability that text and picture belong together (fusion stack)")


class Results(BaseModel):
    """Pictures, best first."""

    results: list[Result]
    milliseconds: float = Field(description="from the arrival of the search to its answer")
    num_reranked: int
    answered_together: int


class Face:
    """What the endpoints share: the engine, the limits, and pictures made small."""

    def __init__(self, engine: SearchEngine, limits: Limits, about: dict[str, Any]) -> None:
        self.engine, self.limits, self.about = engine, limits, about
        self.collection = engine.collection
        self._thumbnails: OrderedDict[str, bytes] = OrderedDict()

    async def search(self, query: Search) -> Results:
        try:
            answer = await asyncio.wait_for(asyncio.wrap_future(self.engine.submit(query)), self.limits.seconds)
        except TooBusy as error:
            raise HTTPException(503, f"too many searches at once: {error}; try again", {"Retry-After": "1"}) from error
        except TimeoutError as error:
            raise HTTPException(503, f"no answer within {self.limits.seconds:g} seconds; try again") from error
        return self._results(answer)

    def _results(self, answer: Answer) -> Results:
        found = []
        for hit in answer.hits:
            picture = self.collection.pictures[hit.place]
            found.append(
                Result(
                    id=picture.picture_id,
                    name=picture.name,
                    captions=picture.captions,
                    score=round(hit.score, 5),
                    similarity=round(hit.similarity, 5),
                    match=None if hit.match is None else round(hit.match, 5),
                )
            )
        return Results(
            results=found,
            milliseconds=round(answer.milliseconds, 2),
            num_reranked=sum(hit.match is not None for hit in answer.hits),
            answered_together=answer.num_together,
        )

    def text_query(self, search: TextSearch) -> Search:
        """A checked search; HTTPException 422 says what is wrong."""
        text = search.text.strip()
        if len(text) > self.limits.text_length:
            raise HTTPException(422, f"text: {len(text)} characters; allowed at most {self.limits.text_length}")
        try:
            self.engine.loaded.inputs.texts([text])
        except ValueError as error:
            raise HTTPException(422, f"text: nothing to look for ({error})") from error
        return Search(text=text, num_results=self.count(search.k), num_candidates=self._candidates(search.rerank))

    def count(self, wanted: int | None) -> int:
        if wanted is not None and wanted > self.limits.num_results:
            raise HTTPException(422, f"k: {wanted}; allowed at most {self.limits.num_results}")
        return wanted or min(24, self.limits.num_results)

    def _candidates(self, wanted: int | None) -> int:
        if not self.engine.can_rerank:
            if wanted:
                raise HTTPException(422, "rerank: this model has no fusion stack; allowed: 0")
            return 0
        if wanted is not None and wanted > self.limits.num_candidates:
            raise HTTPException(422, f"rerank: {wanted}; allowed at most {self.limits.num_candidates}")
        return self.limits.num_candidates if wanted is None else wanted

    def read_upload(self, data: bytes, k: int | None) -> Search:
        """A search by an uploaded picture."""
        number = self.count(k)
        try:
            encoded = open_image(data)
            if encoded.height * encoded.width > self.limits.pixels:
                found = f"{encoded.width} x {encoded.height} pixels"
                raise HTTPException(413, f"picture: {found}; allowed at most {self.limits.pixels} in all")
            pixels = self.engine.loaded.inputs.images([data])[0]
        except ValueError as error:
            raise HTTPException(422, f"picture: cannot be read ({str(error)[:200]})") from error
        return Search(pixels=pixels, num_results=number)

    def thumbnail(self, picture_id: str, size: str) -> bytes:
        """A picture of the collection as JPEG; HTTPException 404 for an unknown one."""
        place = self.collection.place.get(picture_id)
        if place is None:
            raise HTTPException(404, "no such picture")
        kept = self._thumbnails.get(picture_id) if size == "small" else None
        if kept is not None:
            return kept
        try:
            image = Image.fromarray(decode_image(self.collection.read(place)))
        except (OSError, BadRecord) as error:
            raise HTTPException(404, "this picture can no longer be read") from error
        image.thumbnail((SIDES[size], SIDES[size]), Image.Resampling.LANCZOS)
        packed = io.BytesIO()
        image.save(packed, "JPEG", quality=88)
        if size == "small":
            self._thumbnails[picture_id] = packed.getvalue()
            if len(self._thumbnails) > MAX_KEPT_THUMBNAILS:
                self._thumbnails.popitem(last=False)
        return packed.getvalue()


def create_app(face: Face, *, hosts: list[str], token: str) -> FastAPI:
    """The whole application; hosts are the names by which it may be called, an empty token asks for none."""
    app = FastAPI(title="Rosetta-VL search", version="1", docs_url=None, redoc_url=None)
    app.include_router(pages(app))
    app.include_router(endpoints(face), prefix="/api")
    app.add_exception_handler(RequestValidationError, tell_invalid)
    app.add_middleware(Gate, token=token, limits=face.limits)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    return app


async def tell_invalid(_: Request, error: Exception) -> JSONResponse:
    """What is wrong with a request in one sentence."""
    assert isinstance(error, RequestValidationError)
    places = [".".join(str(part) for part in each["loc"][1:]) or str(each["loc"][0]) for each in error.errors()]
    told = [f"{place}: {each['msg']}" for place, each in zip(places, error.errors(), strict=True)]
    return JSONResponse({"detail": "; ".join(told)[:500]}, 422)


def endpoints(face: Face) -> APIRouter:
    """The JSON endpoints."""
    router = APIRouter()

    @router.get("/health", summary="What is served, and that it is")
    async def health() -> dict[str, Any]:
        return {"status": "ok", **face.about}

    @router.post("/search/text", response_model=Results, summary="Pictures that fit a text")
    async def search_text(search: TextSearch) -> Results:
        return await face.search(await run_in_threadpool(face.text_query, search))

    @router.get("/search/text", response_model=Results, summary="The same by address")
    async def search_text_by_address(
        text: str, k: Annotated[int | None, Query(ge=1)] = None, rerank: Annotated[int | None, Query(ge=0)] = None
    ) -> Results:
        return await search_text(TextSearch(text=text, k=k, rerank=rerank))

    body = {"schema": {"type": "string", "format": "binary"}}
    form = {"schema": {"type": "object", "properties": {"file": body["schema"]}, "required": ["file"]}}

    @router.post(
        "/search/image",
        response_model=Results,
        summary="Pictures like an uploaded one",
        openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": form, "image/*": body}}},
    )
    async def search_image(request: Request, k: Annotated[int | None, Query(ge=1)] = None) -> Results:
        return await face.search(await run_in_threadpool(face.read_upload, await uploaded(request), k))

    @router.get("/images", summary="Pictures of the collection, some at a time, by name or mixed")
    async def images(
        start: Annotated[int, Query(ge=0)] = 0,
        count: Annotated[int, Query(ge=1, le=200)] = 24,
        mixed: bool = False,
    ) -> dict[str, Any]:
        kept = [face.collection.pictures[place] for place in face.engine.kept]
        kept = sorted(kept, key=lambda picture: picture.picture_id) if mixed else kept  # ids are as good as random
        shown = kept[start : start + count]
        found = [{"id": each.picture_id, "name": each.name, "captions": each.captions} for each in shown]
        return {"total": len(kept), "images": found}

    @router.get("/images/{picture_id}", response_class=Response, summary="A picture of the collection, as JPEG")
    async def image(picture_id: str, size: Literal["small", "large"] = "small") -> Response:
        content = await run_in_threadpool(face.thumbnail, picture_id, size)
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    return router


async def uploaded(request: Request) -> bytes:
    """The picture of a form's first file, or the body itself."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        data = await request.body()
    else:
        form = await request.form(max_files=1, max_fields=4)
        files = [value for value in form.values() if not isinstance(value, str)]
        data = await files[0].read() if files else b""
    if not data:
        raise HTTPException(422, "picture: none was sent; send it as the body or as `file` of a form")
    return data


def pages(app: FastAPI) -> APIRouter:
    """The page, its files, and the endpoints' description for people."""
    router = APIRouter(include_in_schema=False)

    @router.get("/", response_class=HTMLResponse)
    async def index() -> str:
        return (PAGE / "index.html").read_text(encoding="utf-8")

    @router.get("/docs", response_class=HTMLResponse)
    async def documentation() -> str:
        from tasks.search_docs import describe

        return describe(app.openapi())

    @router.get("/static/{name}")
    async def static(name: str) -> Response:
        if name not in STATIC:
            raise HTTPException(404, "no such file")
        content = (PAGE / name).read_text(encoding="utf-8")
        return Response(content, media_type=STATIC[name], headers={"Cache-Control": "no-cache"})

    return router


class Gate:
    """Stands before everything: checks the token, keeps bodies within their size, sets the headers."""

    def __init__(self, app: Any, token: str, limits: Limits) -> None:
        self.app, self.token, self.limits = app, token, limits

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_as_bytes(HEADERS)]
            await send(message)

        request = Request(scope)
        refused = self._refusal(request)
        if refused is not None:
            return await refused(scope, receive, send_with_headers)
        is_upload = request.url.path == "/api/search/image"
        allowed = self.limits.upload_bytes if is_upload else MAX_JSON_BYTES
        body = await read_body(receive, allowed + FORM_BYTES) if request.method == "POST" else b""
        if body is None:
            told = JSONResponse({"detail": f"more than {allowed} bytes were sent"}, 413, {"Connection": "close"})
            return await told(scope, receive, send_with_headers)
        return await self.app(scope, replay(body, receive), send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        if not self.token or request.url.path in OPEN_PATHS:
            return None
        given = request.query_params.get("token")
        if request.url.path == "/" and given is not None and self._is_right(given):
            answer = RedirectResponse("/", 303)  # the token leaves the address
            answer.set_cookie(COOKIE, given, httponly=True, samesite="strict", max_age=30 * 86400)
            return answer
        word = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if self._is_right(word) or self._is_right(request.cookies.get(COOKIE, "")):
            return None
        if request.url.path == "/":
            return HTMLResponse((PAGE / "token.html").read_text(encoding="utf-8"), 401)
        return JSONResponse({"detail": "a token is needed: Authorization: Bearer TOKEN"}, 401)

    def _is_right(self, given: str) -> bool:
        """Compared in constant time."""
        return hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode())


async def read_body(receive: Any, allowed: int) -> bytes | None:
    """The whole body; None if it is longer than allowed. Somewhat more is read and dropped, so that who sends it hears
    the answer.
    """
    parts, length, has_more = [], 0, True
    while has_more and length <= allowed + DRAINED_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        length += len(message.get("body", b""))
        has_more = message.get("more_body", False)
        parts = parts + [message.get("body", b"")] if length <= allowed else []
    return b"".join(parts) if length <= allowed else None


def replay(body: bytes, receive: Any) -> Any:
    """A body that was read already, as the application receives it, and then what follows."""
    is_given = False

    async def receive_again() -> Any:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


def _as_bytes(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]
