"""Runs a documented snippet as it is written.

One thing is replaced: the addresses, credentials and files of the reader's machine by those of the test's.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping
from inspect import CO_COROUTINE
from typing import Any

import anyio

WITHIN = 60.0


async def run(snippet: str, names: dict[str, Any], theirs: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Execute `snippet`, which may await, in the name space `names`; returns that.

    `theirs`: what is the reader's, and what this machine has instead."""
    replaced = {**(theirs or {}), **_redis()}
    text = snippet
    for written, here in replaced.items():
        text = text.replace(written, here)
    code = compile(text, "<snippet>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    with anyio.fail_after(WITHIN):
        result = eval(code, names)
        if code.co_flags & CO_COROUTINE:
            await result
    return names


def on(broker: str, snippet: str) -> str:
    """A snippet that names Redis, for another broker."""
    assert '"redis"' in snippet
    return snippet.replace('"redis"', f'"{broker}"')


def _redis() -> dict[str, str]:
    url = os.environ.get("AMB_REDIS_URL", "")
    return {"redis://localhost:6379/0": url, "redis://localhost:6379": url} if url else {}
