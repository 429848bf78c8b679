"""The page as one HTML file that needs nothing else and runs nothing but its own script.

Decides the content security policy and how the parts are put together. What the page says is
decided by `page`. Every value goes through jinja's escaping; the exceptions are the style sheet and
the script of this package, and figures, which are XML made by a serialiser.
"""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from raypeft.report.page import Page


def render_html(page: Page) -> str:
    """Return the page as HTML text that UTF-8 can hold."""
    script, style = _asset("report.js"), _asset("report.css")
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            page=page,
            script=Markup(script),
            style=Markup(style),
            policy=content_policy(script, style),
        )
    )


def content_policy(script: str, style: str) -> str:
    """Return the policy under which only this script and this style sheet do anything.

    No network, no frames, no forms, no plug-ins, no inline handlers, no `eval`.
    """
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_digest(script)}'",
            f"style-src '{_digest(style)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@cache
def _asset(name: str) -> str:
    return (files("raypeft.report") / "templates" / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("raypeft.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # ASCII only: lone surrogates and line separators are written as escapes.
    arguments: dict[str, Any] = {"ensure_ascii": True, "separators": (",", ":")}
    environment.policies["json.dumps_kwargs"] = arguments
    return environment
