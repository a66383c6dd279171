"""OpenAPI and a page to read it, both made of the bodies' own types."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from .. import __version__
from .bodies import Body

_REF = "#/components/schemas/{model}"


class Described(Protocol):
    """What is told of an endpoint."""

    @property
    def path(self) -> str: ...

    @property
    def body(self) -> type[Body]: ...

    @property
    def summary(self) -> str: ...


def openapi(
    endpoints: Sequence[Described], read_paths: Mapping[str, str]
) -> dict[str, Any]:
    """The OpenAPI document (version 3.1).

    Args:
        endpoints: what is posted to.
        read_paths: what GET answers: paths, and a sentence on each.
    """
    schemas: dict[str, Any] = {}
    answer = {"200": {"description": "As OpenAI's API or vLLM has it."}}
    paths: dict[str, Any] = {
        path: {"get": _operation(path, summary, answer)}
        for path, summary in read_paths.items()
    }
    for endpoint in endpoints:
        schema = endpoint.body.model_json_schema(ref_template=_REF)
        schemas |= schema.pop("$defs", {})
        schemas[endpoint.body.__name__] = schema
        content = {"schema": {"$ref": _REF.format(model=endpoint.body.__name__)}}
        paths[endpoint.path] = {
            "post": {
                "summary": endpoint.summary,
                "requestBody": {
                    "required": True,
                    "content": {"application/json": content},
                },
                "responses": answer,
            }
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "optserve gateway", "version": __version__},
        "paths": paths,
        "security": [{}, {"key": []}],  # as the gateway was started
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(path: str, summary: str, answer: dict[str, Any]) -> dict[str, Any]:
    """What GET does at a path, whose parts in braces are parameters."""
    names = re.findall(r"{(\w+)}", path)
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in names
    ]
    return {"summary": summary, "parameters": parameters, "responses": answer}


def page(endpoints: Sequence[Described], read_paths: Mapping[str, str]) -> str:
    """A page that lists each endpoint's fields; it loads nothing from elsewhere."""
    sections = "".join(_section(endpoint) for endpoint in endpoints)
    sections += "".join(
        f"<h2><code>GET {html.escape(path)}</code></h2><p>{html.escape(summary)}</p>"
        for path, summary in read_paths.items()
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        "<title>optserve gateway</title><style>"
        ":root{color-scheme:light dark}body{font:16px/1.5 system-ui;max-width:60rem;"
        "margin:2rem auto;padding:0 1rem}td{padding:.2rem 1rem .2rem 0;"
        "vertical-align:top}</style><h1>optserve gateway</h1><p>The document for "
        f"programs is <a href=openapi.json>openapi.json</a>.</p>{sections}"
    )


def _section(endpoint: Described) -> str:
    fields = endpoint.body.model_json_schema()["properties"]
    rows = "".join(
        f"<tr><td><code>{html.escape(name)}</code>"
        f"<td>{html.escape(str(field.get('default', 'required')))}"
        for name, field in fields.items()
    )
    return (
        f"<h2><code>POST {html.escape(endpoint.path)}</code></h2>"
        f"<p>{html.escape(endpoint.summary)}</p>"
        f"<table><tr><th align=left>field<th align=left>default{rows}</table>"
    )
