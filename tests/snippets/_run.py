"""Runs a documented snippet as it is written.

Two things are replaced: the import name ``agent_os.amb``, which a later distribution brings, by ``amb_core``; and
the address of the Redis server on the reader's machine by that of the test's.
"""

from __future__ import annotations

import ast
import os
from inspect import CO_COROUTINE
from typing import Any

import anyio

WITHIN = 30.0


async def run(snippet: str, names: dict[str, Any]) -> dict[str, Any]:
    """Execute `snippet`, which may await, in the name space `names`; returns that."""
    url = os.environ.get("AMB_REDIS_URL", "")
    text = snippet.replace("agent_os.amb", "amb_core")
    if url:
        text = text.replace("redis://localhost:6379/0", url).replace("redis://localhost:6379", url)
    code = compile(text, "<snippet>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    with anyio.fail_after(WITHIN):
        result = eval(code, names)
        if code.co_flags & CO_COROUTINE:
            await result
    return names
