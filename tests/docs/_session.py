"""Runs one page in a process and a folder of its own: ``python -m tests.docs._session PAGE``.

Python blocks share one name space and one event loop, and may await. A block with a title is saved under that
name. Console blocks run command by command; one that ends in ``&`` goes on until the block ends. Where a page says
``redis://localhost:6379/0``, ``nats://localhost:4222``, ``amqp://guest:guest@localhost:5672/`` or
``http://localhost:4566``, the server in AMB_REDIS_URL, AMB_NATS_URL, AMB_RABBITMQ_URL or AMB_SQS_ENDPOINT_URL is meant.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import traceback
from inspect import CO_COROUTINE
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import anyio
import anyio.abc
import msgspec

from ._page import (
    THEIR_AZURE,
    THEIR_KAFKA,
    THEIR_NATS,
    THEIR_RABBITMQ,
    THEIR_REDIS,
    THEIR_REGISTRY,
    THEIR_SQS,
    Block,
    Step,
    blocks,
    matches,
    steps,
)

_WITHIN = 30.0
_SERVERS = (
    ("AMB_REDIS_URL", THEIR_REDIS),
    ("AMB_NATS_URL", THEIR_NATS),
    ("AMB_RABBITMQ_URL", THEIR_RABBITMQ),
    ("AMB_SQS_ENDPOINT_URL", THEIR_SQS),
    ("AMB_TEST_AZURE_ENDPOINT", THEIR_AZURE),
    ("AMB_KAFKA_BROKERS", THEIR_KAFKA),
    ("AMB_SCHEMA_REGISTRY_URL", THEIR_REGISTRY),
)


class Session:
    """See the module."""

    def __init__(self, page: Path) -> None:
        self._page = page
        module = ModuleType("__page__")  # dataclasses look their module up by name
        sys.modules["__page__"] = module
        self._names: dict[str, Any] = vars(module)
        self._status = 0

    async def run(self) -> None:
        """Run every block that can be run. Raises what a block raises, with the page's own line numbers."""
        for block in map(_here, blocks(self._page)):
            if block.title:
                path = Path(block.title)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text)
            elif block.language == "python":
                await self._python(block)
            elif block.language == "console":
                await self._console(block)

    async def _python(self, block: Block) -> None:
        code = compile_block(block, str(self._page))
        with anyio.fail_after(_WITHIN):
            result = eval(code, self._names)
            if code.co_flags & CO_COROUTINE:
                await result

    async def _console(self, block: Block) -> None:
        running: list[anyio.abc.Process] = []
        try:
            todo = steps(block.text)
            for step, following in zip(todo, [*todo[1:], Step("", "")], strict=True):
                if step.command.startswith("export "):
                    name, _, value = step.command.removeprefix("export ").partition("=")
                    os.environ[name] = os.path.expandvars(value)
                elif step.command.endswith("&"):
                    running.append(await self._background(step))
                elif step.command == "echo $?":
                    assert matches(step.expected, str(self._status)), (
                        f"exit code {self._status}, the page says {step.expected}"
                    )
                else:
                    await self._command(step, following.command == "echo $?")
        finally:
            for process in running:
                await _end(process)

    async def _command(self, step: Step, may_fail: bool) -> None:
        try:
            with anyio.fail_after(_WITHIN):
                done = await anyio.run_process(["bash", "-c", step.command], check=False, stderr=subprocess.STDOUT)
        except TimeoutError:
            raise AssertionError(f"$ {step.command}\ndid not end within {_WITHIN:g} s") from None
        self._status, printed = done.returncode, _plain(done.stdout.decode())
        assert may_fail or done.returncode == 0, f"$ {step.command}\n{printed}\nended in {done.returncode}"
        assert not step.expected or matches(step.expected, printed), (
            f"$ {step.command}\n{printed}\nthe page says:\n{step.expected}"
        )

    async def _background(self, step: Step) -> anyio.abc.Process:
        """Start a command; it is there when it has said something, or, if the page shows what it says, that."""
        process = await anyio.open_process(["bash", "-c", f"exec {step.command[:-1]} 2>&1"])
        assert process.stdout is not None
        printed = ""
        try:
            with anyio.fail_after(_WITHIN):
                while not printed or (step.expected and not matches(step.expected.strip() + "...", printed)):
                    printed += _plain((await process.stdout.receive()).decode())
        except (TimeoutError, anyio.EndOfStream):
            await _end(process)
            raise AssertionError(f"$ {step.command}\nsaid\n{printed}\nthe page says:\n{step.expected}") from None
        return process


async def _end(process: anyio.abc.Process) -> None:
    with anyio.CancelScope(shield=True), anyio.fail_after(_WITHIN):
        if process.returncode is None:
            process.terminate()
        await process.wait()
        await process.aclose()


def _here(block: Block) -> Block:
    """The block with the server of this test where a reader has one of their own."""
    text = block.text
    for variable, theirs in _SERVERS:
        text = text.replace(theirs, os.environ.get(variable, theirs))
    return msgspec.structs.replace(block, text=text)


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def compile_block(block: Block, name: str) -> CodeType:
    """The block as code that may await, with the line numbers of the page."""
    tree = compile(
        "\n" * (block.line - 1) + block.text, name, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, True
    )
    code: CodeType = compile(tree, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, True)
    return code


def main(page: str) -> int:
    """Run a page; returns the exit code."""
    sys.path.insert(0, os.getcwd())
    try:
        anyio.run(Session(Path(page)).run)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
