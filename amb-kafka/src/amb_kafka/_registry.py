"""A schema registry, asked over HTTP: the five questions of the Confluent API that AMB has."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from amb_core.config import mask_url
from amb_core.errors import (
    AccessDenied,
    AmbError,
    AuthenticationError,
    ConfigurationError,
    IncompatibleSchema,
    NotFound,
    PluginError,
    Unavailable,
)
from amb_core.serializer import Schema

if TYPE_CHECKING:
    import httpx

    from .broker import KafkaBroker

__all__ = ["Registry", "registry"]

_MEDIA_TYPE = "application/vnd.schemaregistry.v1+json"
#: Schemas that refer to schemas that refer to schemas.
_DEEPEST = 20
_LONGEST_TEXT = 500
_REFUSED: Mapping[int, tuple[type[AmbError], str]] = {
    401: (AuthenticationError, "check schema_registry_username and schema_registry_password"),
    403: (AccessDenied, "grant the user what it needs in the registry"),
    404: (NotFound, "register it first"),
    409: (IncompatibleSchema, "change the schema so that it may follow, or the subject's compatibility"),
    422: (IncompatibleSchema, "the registry takes no such schema"),
}


@asynccontextmanager
async def registry(options: KafkaBroker) -> AsyncIterator[Registry | None]:
    """The registry that the options name, if they name one. Nothing is asked yet."""
    if options.schema_registry_url is None:
        yield None
        return
    try:
        import httpx
    except ImportError as error:
        raise PluginError("httpx is not installed: pip install 'amb-kafka[schema-registry]'") from error
    url = urlsplit(options.schema_registry_url)
    user = options.schema_registry_username or unquote(url.username or "")
    secret = options.schema_registry_password or unquote(url.password or "")
    headers = {"Accept": f"{_MEDIA_TYPE}, application/json", "Content-Type": _MEDIA_TYPE}
    if options.schema_registry_token is not None:
        headers["Authorization"] = f"Bearer {options.schema_registry_token}"
    async with httpx.AsyncClient(
        base_url=url._replace(netloc=url.netloc.rpartition("@")[2]).geturl(),
        auth=(user, secret) if user else None,
        headers=headers,
        timeout=options.response_timeout,
        verify=_context(options) if url.scheme == "https" else True,
    ) as client:
        yield Registry(client, mask_url(options.schema_registry_url))


def _context(options: KafkaBroker) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.schema_registry_cafile)
        if options.schema_registry_certfile is not None:
            context.load_cert_chain(options.schema_registry_certfile, options.schema_registry_keyfile)
    except OSError as error:
        raise ConfigurationError(
            f"KafkaBroker: schema_registry_cafile, schema_registry_certfile or schema_registry_keyfile: {error}"
        ) from error
    return context


class Registry:
    """Every method is one question, or, with references, some. Raises: AmbError, with the subject or id in its text."""

    def __init__(self, client: httpx.AsyncClient, shown: str) -> None:
        self._client, self.shown = client, shown

    async def register(self, subject: str, schema: Schema) -> int:
        """The id of the schema, which is the subject's latest if it has not had it."""
        body = await self._body(schema, register=True)
        what = f"register the schema of {schema.name or 'a reference'} as the subject {subject!r}"
        return _id(await self._ask("POST", f"/subjects/{quote(subject, safe='')}/versions", what, body), what)

    async def find(self, subject: str, schema: Schema, register: bool = False) -> tuple[int, int]:
        """Id and version of a schema that the subject has. `register`: what it refers to may be added."""
        what = f"find the schema of {schema.name or 'a reference'} in the subject {subject!r}"
        body = await self._body(schema, register)
        found = await self._ask("POST", f"/subjects/{quote(subject, safe='')}", what, body)
        return _id(found, what), _id(found, what, "version")

    async def _body(self, schema: Schema, register: bool) -> dict[str, Any]:
        references = []
        for name, other in schema.references:
            if register:
                await self.register(name, other)
            _, version = await self.find(name, other, register)
            references.append({"name": name, "subject": name, "version": version})
        body: dict[str, Any] = {"schema": schema.text, "schemaType": schema.format.upper()}
        return body | {"references": references} if references else body

    async def latest(self, subject: str) -> tuple[int, Schema]:
        """The subject's newest schema."""
        what = f"read the latest schema of the subject {subject!r}"
        found = await self._ask("GET", f"/subjects/{quote(subject, safe='')}/versions/latest", what)
        return _id(found, what), await self._schema(found, what, _DEEPEST)

    async def by_id(self, number: int) -> Schema:
        """The schema of an id."""
        what = f"read the schema {number}"
        return await self._schema(await self._ask("GET", f"/schemas/ids/{number}", what), what, _DEEPEST)

    async def _schema(self, found: Mapping[str, Any], what: str, left: int) -> Schema:
        references = []
        for one in found.get("references") or ():
            if not left:
                raise ConfigurationError(f"{what}: it refers to others more than {_DEEPEST} levels deep")
            path = f"/subjects/{quote(str(one['subject']), safe='')}/versions/{int(one['version'])}"
            other = await self._ask("GET", path, what)
            references.append((str(one["name"]), await self._schema(other, what, left - 1)))
        kind = str(found.get("schemaType") or "AVRO").lower()
        return Schema(kind, str(found.get("schema", "")), "", (), tuple(references))

    async def _ask(self, method: str, path: str, what: str, body: object = None) -> dict[str, Any]:
        import httpx

        try:
            answer = await self._client.request(method, path.lstrip("/"), json=body)
        except (httpx.HTTPError, OSError, RuntimeError) as error:
            # The last is what a client raises that was closed, with the connection, just now.
            text = " ".join(str(error).split()) or type(error).__name__
            raise Unavailable(
                f"{what}: the schema registry at {self.shown} cannot be reached: {text}; is it up and reachable?"
            ) from error
        said = _said(answer)
        if answer.status_code == 200 and isinstance(said, dict):
            return said
        raise self._refused(answer.status_code, said, what)

    def _refused(self, code: int, said: object, what: str) -> AmbError:
        # What is no registry may say 404 too.
        answers = isinstance(said, dict) and "error_code" in said
        text = str(said.get("message", "")) if isinstance(said, dict) else str(said)
        text = " ".join(text.split())[:_LONGEST_TEXT].rstrip(".") or "no reason given"
        where = f"the schema registry at {self.shown}"
        if code in _REFUSED and (code != 404 or answers):
            kind, advice = _REFUSED[code]
            return kind(f"{what}: {where} says {code}: {text}; {advice}")
        if code >= 500 or code in (408, 425, 429):
            return Unavailable(f"{what}: {where} says {code}: {text}; look at its log")
        return ConfigurationError(f"{what}: {where} says {code}: {text}; is schema_registry_url right?")


def _said(answer: httpx.Response) -> object:
    try:
        return answer.json()
    except ValueError:
        return answer.text


def _id(found: Mapping[str, Any], what: str, name: str = "id") -> int:
    number = found.get(name)
    if not isinstance(number, int) or not 0 <= number < 2**32:
        raise ConfigurationError(f"{what}: the answer has no {name}; is schema_registry_url right?")
    return number
