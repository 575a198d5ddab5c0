"""The endpoints for people: one page made from the OpenAPI description, without script and without network."""

from __future__ import annotations

import json
from html import escape
from typing import Any

LIMITS = {"minimum": "at least", "maximum": "at most"}
TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}: endpoints</title><link rel="icon" href="/static/icon.svg">
<link rel="stylesheet" href="/static/search.css">
</head><body class="docs"><main><p><a href="/">Search</a></p><h1>{title}</h1>
<p>JSON endpoints. The machine-readable description is <a href="/openapi.json">openapi.json</a>.</p>
{body}</main></body></html>
"""


def describe(schema: dict[str, Any]) -> str:
    """The page of an OpenAPI description."""
    parts = []
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<section><h2><code>{method.upper()} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(operation.get('summary', ''))}</p>")
            parts.append(_fields("in the address", _of_parameters(operation)))
            parts.append(_fields("in the body", _of_body(operation, schema)))
            parts.append("</section>")
    return TEMPLATE.format(title=escape(schema["info"]["title"]), body="".join(parts))


def _of_parameters(operation: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (each["name"], _type(each["schema"]) + (", required" if each.get("required") else ""))
        for each in operation.get("parameters", [])
    ]


def _of_body(operation: dict[str, Any], schema: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        own = content["schema"]
        if "$ref" in own:
            own = schema["components"]["schemas"][own["$ref"].rpartition("/")[2]]
        fields = own.get("properties", {"": own})
        for name, field in fields.items():
            words = [_type(field), "required" if name in own.get("required", []) else "", field.get("description", "")]
            found.append((f"{kind} {name}".strip(), ", ".join(word for word in words if word)))
    return found


def _fields(where: str, fields: list[tuple[str, str]]) -> str:
    rows = "".join(f"<dt><code>{escape(name)}</code></dt><dd>{escape(text)}</dd>" for name, text in fields)
    return f"<h3>{where}</h3><dl>{rows}</dl>" if rows else ""


def _type(field: dict[str, Any]) -> str:
    if "enum" in field:
        return " or ".join(json.dumps(value) for value in field["enum"])
    if "anyOf" in field:
        return " or ".join(_type(each) for each in field["anyOf"] if each.get("type") != "null")
    limits = [f"{words} {field[key]:g}" for key, words in LIMITS.items() if key in field]
    return ", ".join([field.get("format") or field.get("type", "value"), *limits])
