"""For options structs: secrets that never show, and checks that name the option.

A broker's options are the broker::

    class AcmeBroker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        \"\"\"Acme's message service.\"\"\"

        #: Where the server is.
        url: str = "acme://localhost"
        #: The account's password.
        password: Secret | None = None

        def __post_init__(self) -> None:
            config.validate(self)

        def __repr__(self) -> str:
            return config.masked_repr(self)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias, get_args

import msgspec

from .errors import ConfigurationError

__all__ = ["Secret", "is_secret", "mask_url", "masked_repr", "validate"]

_SECRET_META = msgspec.Meta(extra={"secret": True})
#: The type of an option that must not show anywhere.
Secret: TypeAlias = Annotated[str, _SECRET_META]

_MASK = "***"
_SECRET_NAME = r"(?:passw|pwd|secret|token|credential|signature|seed|api_?key|access_?key(?!_?(?:id|name)))"
_IS_SECRET_NAME = re.compile(_SECRET_NAME, re.IGNORECASE)
_SECRET_PAIR = re.compile(rf"([\w.-]*{_SECRET_NAME}[\w.-]*=)[^&;\s]*", re.IGNORECASE)
_NEXT_URL = re.compile(r",(?=[A-Za-z][\w+.-]*://)")
# Up to the last @, since people forget to quote the @ and / in passwords; a lone word before it may be a token.
_USER_INFO = re.compile(r"://(?:([^/?#:@]*):.*@|[^/?#]*@)", re.DOTALL)


def mask_url(url: str) -> str:
    """`url`, or several with commas between, or a ``Key=value;`` connection string, with every secret as ``***``.

    Masked are the password in front of the host, or the lone token there, and parameters that sound secret.
    """
    return ",".join(_SECRET_PAIR.sub(rf"\1{_MASK}", _USER_INFO.sub(_user_info, part)) for part in _NEXT_URL.split(url))


def _user_info(match: re.Match[str]) -> str:
    return f"://{_MASK}@" if match[1] is None else f"://{match[1]}:{_MASK}@"


def masked_repr(struct: msgspec.Struct) -> str:
    """``Name(option=value, …)`` with the options that differ from their defaults; secrets show as ``'***'``.

    Secrets are `Secret` fields, the credentials in URLs, and entries of dicts whose names sound secret.
    """
    shown = []
    for field in msgspec.structs.fields(struct):
        value = getattr(struct, field.name)
        if field.required or value != _default(field):
            masked = _MASK if value is not None and is_secret(field.type) else _masked(value)
            shown.append(f"{field.name}={masked!r}")
    return f"{type(struct).__name__}({', '.join(shown)})"


def is_secret(annotation: Any) -> bool:
    """Whether a field's type is `Secret`, or contains it as in ``Secret | None``."""
    if annotation is _SECRET_META:
        return True
    arguments = (*get_args(annotation), *getattr(annotation, "__metadata__", ()))
    return any(is_secret(argument) for argument in arguments if argument is not annotation)


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return mask_url(value)
    if isinstance(value, Mapping):
        return {key: _MASK if _IS_SECRET_NAME.search(str(key)) else _masked(item) for key, item in value.items()}
    return type(value)(map(_masked, value)) if type(value) in (list, tuple, set, frozenset) else value


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def validate(struct: msgspec.Struct) -> None:
    """Return if every field holds what its annotation says; call it from ``__post_init__``.

    msgspec checks what it decodes, not what a program passes to the constructor: this closes the gap. Values
    become what the annotation says where nothing is lost (a tuple for a list); lists and dicts are copied.
    Raises: ConfigurationError that names the option.
    """
    for field in msgspec.structs.fields(struct):
        value = getattr(struct, field.name)
        try:
            checked = msgspec.convert(value, field.type)
        except msgspec.ValidationError as error:
            shown = "" if is_secret(field.type) else f" (given: {_masked(value)!r})"
            raise ConfigurationError(f"{type(struct).__name__}: option {field.name!r}: {error}{shown}") from None
        if checked is not value:
            msgspec.structs.force_setattr(struct, field.name, checked)
