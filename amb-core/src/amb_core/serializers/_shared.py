"""What the serializers share: types msgspec does not know, and errors in AMB's own tree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import msgspec

from ..errors import DecodeError, EncodeError
from ..serializer import Decoder

_LONGEST_REASON = 1000
_SCALARS: tuple[tuple[type, Callable[[Any], object]], ...] = (
    (str, str.__str__),
    (float, float.__float__),
    (int, int.__int__),
)


def plain(value: Any) -> Any:
    """An equivalent of `value` that msgspec can encode. Raises: TypeError if there is none."""
    for base, convert in _SCALARS:
        if isinstance(value, base):
            return convert(value)
    if hasattr(type(value), "__pydantic_serializer__"):
        return value.model_dump()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"there is no form for an object of type {type(value).__name__}")


def encode_error(form: str, value: object, error: Exception) -> EncodeError:
    """The error for a payload that cannot be written as `form`."""
    return EncodeError(f"a {type(value).__name__} cannot be sent as {form}: {_reason(error)}")


def guarded(decode: Callable[[bytes], object], form: str, expected: Any) -> Decoder:
    """`decode`, with every failure turned into a DecodeError that says what was expected and where it went wrong."""
    name = "" if expected is Any else f" for {type_name(expected)}"

    def guard(body: bytes, content_type: str) -> object:
        try:
            return decode(body)
        # A payload may trip up anything, validation code of the user's own type included.
        except Exception as error:
            raise DecodeError(f"the payload is not valid {form}{name}: {_reason(error)}") from error

    return guard


def type_name(expected: Any) -> str:
    """How an annotation is called in a message for people."""
    return expected.__name__ if isinstance(expected, type) and not get_args(expected) else str(expected)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply, or contains itself"
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    text = str(error) or type(error).__name__
    # It may name a place as deep in the payload as a stranger likes.
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + "…"


def is_pydantic(expected: Any) -> bool:
    """Whether pydantic validates this class; told without importing pydantic."""
    return isinstance(expected, type) and hasattr(expected, "__pydantic_validator__")


def pydantic_decoder(expected: Any, json: bool) -> Callable[[Any], object]:
    """Decodes JSON bytes, or plain values, into a pydantic class."""
    validator = expected.__pydantic_validator__
    validate = validator.validate_json if json else validator.validate_python

    def decode(value: Any) -> object:
        try:
            return validate(value)
        except ValueError as error:
            raise ValueError(_pydantic_reason(error)) from None

    return decode


def _pydantic_reason(error: Any) -> str:
    # The library's own text repeats the input, which belongs in no log.
    problems = (
        error.errors(include_url=False, include_input=False, include_context=False) if hasattr(error, "errors") else []
    )
    return (
        "; ".join(f"{p['msg']} - at `{'.'.join(['$', *map(str, p['loc'])])}`" for p in problems) or type(error).__name__
    )


def make_custom(expected: type, value: Any) -> Any:
    """msgspec's hook for classes inside other types: pydantic's own."""
    if is_pydantic(expected):
        return pydantic_decoder(expected, json=False)(value)
    if isinstance(value, expected):
        return value
    raise NotImplementedError(f"nothing can be decoded into {expected.__name__}")


def check_type(expected: Any, form: str) -> None:
    """Return if something of this type could be decoded at all. Raises: TypeError."""
    try:
        info = msgspec.inspect.type_info(expected)
    except TypeError as error:
        raise TypeError(f"{form} cannot be decoded into {type_name(expected)}: {error}") from None
    if isinstance(info, msgspec.inspect.CustomType) and not is_pydantic(expected):
        raise TypeError(
            f"{form} cannot be decoded into {type_name(expected)}: annotate the handler with a msgspec Struct, "
            "a dataclass, a TypedDict, a pydantic model, a built-in type, or Message"
        )
