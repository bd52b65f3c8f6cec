"""Who may do what: shared access signatures, and bearer tokens that are known."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from .entry import Refusal

SEND, LISTEN, MANAGE = "Send", "Listen", "Manage"


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A shared access key. `entity` is the path it is good for, everything if empty."""

    name: str
    key: str
    rights: tuple[str, ...] = (SEND, LISTEN, MANAGE)
    entity: str = ""


class Auth:
    """Checks tokens; without keys and bearer tokens it lets everybody do everything."""

    def __init__(self, keys: tuple[Key, ...], bearers: tuple[str, ...]) -> None:
        self._keys = {key.name: key for key in keys}
        self._bearers = bearers
        self.open = not keys and not bearers

    def rights(self, token: str, audience: str) -> tuple[str, ...]:
        """What a token allows at an audience (a URL). Raises: Refusal (401)."""
        if self.open:
            return (SEND, LISTEN, MANAGE)
        if not token.startswith("SharedAccessSignature "):
            return self._of_bearer(token.removeprefix("Bearer "))
        fields = {name: values[0] for name, values in parse_qs(token.partition(" ")[2]).items()}
        key = self._keys.get(fields.get("skn", ""))
        if key is None or not hmac.compare_digest(_sign(key.key, token), fields.get("sig", "")):
            raise _refused("The token has an invalid signature.")
        if int(fields.get("se", "0")) < time.time():
            raise _refused("The token has expired.")
        path = _path(audience)
        if not path.startswith(_path(fields.get("sr", ""))) or not path.startswith(key.entity.lower()):
            raise _refused("The token is not for this entity.")
        return key.rights

    def _of_bearer(self, token: str) -> tuple[str, ...]:
        if token not in self._bearers:
            raise _refused("The token is not known.")
        return (SEND, LISTEN, MANAGE)


def path_of(url: str) -> str:
    """The entity in an address, which may be a URL."""
    return unquote(urlsplit(url).path).strip("/") if "://" in url else url.strip("/")


def _path(url: str) -> str:
    return path_of(url).lower()


def _sign(key: str, token: str) -> str:
    """The signature over the resource and the expiry, both as they stand in the token."""
    raw = dict(part.partition("=")[::2] for part in token.partition(" ")[2].split("&"))
    text = f"{raw.get('sr', '')}\n{raw.get('se', '')}"
    return base64.b64encode(hmac.new(key.encode(), text.encode(), hashlib.sha256).digest()).decode()


def _refused(why: str) -> Refusal:
    return Refusal("amqp:unauthorized-access", f"InvalidSignature: {why}", 401)
