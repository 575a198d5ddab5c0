"""The retrieval gallery of the report: queries with the pictures that were found for them, right ones marked."""

import base64
import math
import re
from html import escape
from pathlib import Path
from typing import Any

_DATA_URI = re.compile(r"data:image/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/=]+")
_MIME = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".gif": "gif"}
_RIGHT_TO_LEFT = ("ar", "fa", "he", "ur")
MAX_IMAGE_BYTES = 400_000


def gallery_html(gallery: Any, folder: Path) -> str:
    """Cards of the queries in `gallery`; "" where there are none.

    gallery["queries"] is a list of {"language", "text", "answers": [{"image", "right", "score"}], and where known
    "right_image", "rank" and "dual_rank": the right picture, its 0-based place after re-ranking, and that by the dual
    encoder alone}.
    An image is a data URI or a path, relative to the run's folder or the working directory.
    """
    queries = gallery.get("queries", []) if isinstance(gallery, dict) else []
    cards = [_card(query, folder) for query in queries if isinstance(query, dict)]
    if not cards:
        return ""
    note = "The first pictures for each text, best first. A green frame marks the right one."
    return f'<p class="note">{note}</p><div class="cards">{"".join(cards)}</div>'


def _card(query: dict, folder: Path) -> str:
    language = str(query.get("language", ""))
    direction = "rtl" if language in _RIGHT_TO_LEFT else "ltr"
    answers = [answer for answer in query.get("answers", []) if isinstance(answer, dict)]
    items = "".join(_answer(place, answer, folder) for place, answer in enumerate(answers, 1))
    return (
        f'<article class="card"><header><span class="tag">{escape(language)}</span>'
        f'<q lang="{escape(language)}" dir="{direction}">{escape(str(query.get("text", "")))}</q></header>'
        f'<ol>{items}</ol><p class="verdict">{_sought(query, answers, folder)}{_verdict(query, answers)}</p></article>'
    )


def _sought(query: dict, answers: list[dict], folder: Path) -> str:
    """The right picture, small, where it is not among the answers."""
    source = _source(str(query.get("right_image", "")), folder)
    if not source or any(answer.get("right") for answer in answers):
        return ""
    return f'<img src="{source}" alt="the right picture" width="40" height="40">'


def _verdict(query: dict, answers: list[dict]) -> str:
    """Where the right picture stands, and where the dual encoder alone had put it."""
    right = [place for place, answer in enumerate(answers) if answer.get("right")]
    rank = query.get("rank", right[0] if right else None)
    if not isinstance(rank, int):
        return f'<span class="pill miss">right picture not among the first {len(answers)}</span>'
    words = f"right picture at place {rank + 1}"
    dual_rank = query.get("dual_rank")
    if isinstance(dual_rank, int):
        words += f", dual encoder alone: {dual_rank + 1}"
    return f'<span class="pill {"found" if rank == 0 else "miss"}">{words}</span>'


def _answer(place: int, answer: dict, folder: Path) -> str:
    is_right = bool(answer.get("right"))
    score = answer.get("score")
    shown = f"{score:.2f}" if isinstance(score, (int, float)) and math.isfinite(score) else ""
    name = str(answer.get("image", ""))
    source = _source(name, folder)
    label = f"answer {place}{', right' if is_right else ''}"
    picture = f'<img src="{source}" alt="{label}">' if source else f"<em>{escape(name[:80])}</em>"
    return (
        f'<li class="{"right" if is_right else "wrong"}"><span class="shot">{picture}</span>'
        f'<b>{place}{" right" if is_right else ""}</b><span class="score">{shown}</span></li>'
    )


def _source(image: str, folder: Path) -> str:
    """A data URI for an image; "" where it is none of the known formats, too large, or not there."""
    if image.startswith("data:"):
        return image if _DATA_URI.fullmatch(image) else ""
    kind = _MIME.get(Path(image).suffix.lower())
    for path in (folder / image, Path(image)) if kind else ():
        if path.is_file() and path.stat().st_size <= MAX_IMAGE_BYTES:
            return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    return ""
