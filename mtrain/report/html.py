"""Pages from templates: all text is escaped, nothing is loaded, only our own script runs."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n\r"}
_CONTROLS[0x7F] = "\u2421"


def render(template: str, **values: Any) -> str:
    """A template filled in."""
    return _environment().get_template(template).render(values)


def render_page(template: str, **values: Any) -> str:
    """A page with a content security policy that allows its one `<script>` and nothing else.

    The policy, at `<!-- policy -->`, names the script by its hash: even if a sentence of a corpus
    escaped its quotes, the browser would not run it.
    """
    page = render(template, **values)
    (script,) = _SCRIPT.findall(page)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    tag = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    return page.replace("<!-- policy -->", tag, 1)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mtrain.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
    )
    environment.filters |= {"cell": _table_cell, "literal": Markup}
    return environment


def _visible(value: Any) -> Any:
    """Control characters, which a page must not hold, as the symbols that Unicode has for them."""
    return value.translate(_CONTROLS) if type(value) is str else value


def _table_cell(text: str) -> Markup:
    """Text for a cell of a Markdown table: on one line, with all marks of Markdown escaped."""
    marks = re.sub(r"([\\`*_\[\]|~#!])", r"\\\1", _visible(" ".join(text.split())))
    return Markup(escape(marks))
