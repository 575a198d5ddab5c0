"""The frame of report.html, styled by report.css. No script, no font, no picture is loaded from anywhere."""

from html import escape
from pathlib import Path

# The policy makes a browser refuse every request, so that a report that is passed on stays what it was.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, subtitle: str, top: str, sections: list[tuple[str, str]]) -> str:
    """The whole document; sections are (heading, HTML), empty ones are left out. Headings are escaped here."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    shown = [(f"s{i}", heading, body) for i, (heading, body) in enumerate(sections) if body]
    links = "".join(f'<a href="#{key}">{escape(heading)}</a>' for key, heading, _ in shown)
    bodies = "".join(f'<section id="{key}"><h2>{escape(heading)}</h2>{body}</section>' for key, heading, body in shown)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>"
        f'<body><main><h1>{escape(title)}</h1><p class="sub">{escape(subtitle)}</p>'
        f'<nav aria-label="Sections">{links}</nav>{top}{bodies}'
        "<footer>Written by Rosetta-VL. This file is complete in itself and loads nothing.</footer>"
        "</main></body></html>\n"
    )


def tiles(shown: list[tuple[str, str, str]]) -> str:
    """A row of large numbers: (what, number, words beneath)."""
    items = "".join(
        f"<li><span>{escape(what)}</span><strong>{escape(value)}</strong><small>{escape(beneath)}</small></li>"
        for what, value, beneath in shown
    )
    return f'<ul class="tiles">{items}</ul>' if items else ""


def definitions(pairs: list[tuple[str, str]]) -> str:
    """Names and values below each other."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, value in pairs)}</dl>"


def folded(summary: str, text: str) -> str:
    """Preformatted text that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"
