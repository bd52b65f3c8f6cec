"""The SQL of subscription filters, with its three truth values.

Syntax: learn.microsoft.com/azure/service-bus-messaging/service-bus-messaging-sql-filter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Protocol, cast

from .entry import Refusal

Value = object


class Names(Protocol):
    """Where an expression gets its values from."""

    def system(self, name: str) -> Value:
        """``sys.name``."""
        ...

    def user(self, name: str) -> Value:
        """``user.name``, or only ``name``."""
        ...


Expression = Callable[[Names], Value]

_TOKEN = re.compile(
    r"\s*(?:(?P<string>'(?:[^']|'')*')|(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|\.\d+)"
    r'|(?P<quoted>\[(?:[^\]]|\]\])*\]|"(?:[^"]|"")*")|(?P<parameter>@\w+)'
    r"|(?P<word>[A-Za-z_][\w$-]*)|(?P<sign><>|!=|<=|>=|[=<>(),.+\-*/%]))"
)
_COMPARE: dict[str, Callable[[object, object], bool]] = {
    "=": lambda a, b: a == b,
    "<>": lambda a, b: a != b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: cast(float, a) < cast(float, b),
    ">": lambda a, b: cast(float, a) > cast(float, b),
    "<=": lambda a, b: cast(float, a) <= cast(float, b),
    ">=": lambda a, b: cast(float, a) >= cast(float, b),
}
_CALCULATE: dict[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "%": lambda a, b: a % b,
}


def parse(text: str, parameters: Mapping[str, object], system: Collection[str]) -> Expression:
    """The expression, ready to be evaluated: True, False or None for unknown.

    Raises: Refusal, for a name of the system too that is not in `system` (in lower case).
    """
    parser = _Parser(text, parameters, system)
    expression = parser.any_of()
    parser.end()
    return expression


class _Parser:
    """Descends over the tokens; each method reads one level of precedence."""

    def __init__(self, text: str, parameters: Mapping[str, object], system: Collection[str]) -> None:
        self._parameters, self._system = parameters, system
        self._tokens: list[tuple[str, str]] = []
        self._at = 0
        pos = 0
        while pos < len(text.rstrip()):
            found = _TOKEN.match(text, pos)
            if found is None:
                raise self._wrong(f"at character {pos}")
            kind = found.lastgroup or ""
            self._tokens.append((kind, found.group(kind)))
            pos = found.end()

    def end(self) -> None:
        if self._at < len(self._tokens):
            raise self._wrong(f"near '{self._tokens[self._at][1]}'")

    def any_of(self) -> Expression:
        parts = [self._all_of()]
        while self._accept("OR"):
            parts.append(self._all_of())
        return parts[0] if len(parts) == 1 else lambda names: _either([part(names) for part in parts])

    def _all_of(self) -> Expression:
        parts = [self._negated()]
        while self._accept("AND"):
            parts.append(self._negated())
        return parts[0] if len(parts) == 1 else lambda names: _both([part(names) for part in parts])

    def _negated(self) -> Expression:
        if not self._accept("NOT"):
            return self._predicate()
        inner = self._negated()
        return lambda names: _not(inner(names))

    def _predicate(self) -> Expression:
        if self._accept("EXISTS"):
            self._expect("(")
            name = self._property(self._next())
            self._expect(")")
            return lambda names: name(names) is not None
        left = self._sum()
        if self._accept("IS"):
            wanted = not self._accept("NOT")
            self._expect("NULL")
            return lambda names: (left(names) is None) is wanted
        refuse = self._accept("NOT")
        if self._accept("LIKE"):
            found = self._like(left)
        elif self._accept("IN"):
            found = self._in(left)
        elif refuse:
            raise self._wrong("after NOT")
        else:
            return self._comparison(left)
        return (lambda names: _not(found(names))) if refuse else found

    def _comparison(self, left: Expression) -> Expression:
        kind, sign = self._peek()
        if kind != "sign" or sign not in _COMPARE:
            return left
        self._next()
        right = self._sum()
        return lambda names: _compare(sign, left(names), right(names))

    def _like(self, left: Expression) -> Expression:
        pattern = self._sum()
        escape = self._sum() if self._accept("ESCAPE") else lambda names: None
        return lambda names: _alike(left(names), pattern(names), escape(names))

    def _in(self, left: Expression) -> Expression:
        self._expect("(")
        values = [self._sum()]
        while self._accept(","):
            values.append(self._sum())
        self._expect(")")
        return lambda names: _either([_compare("=", left(names), value(names)) for value in values])

    def _sum(self) -> Expression:
        return self._chain(("+", "-"), self._product)

    def _product(self) -> Expression:
        return self._chain(("*", "/", "%"), self._unit)

    def _chain(self, signs: tuple[str, ...], part: Callable[[], Expression]) -> Expression:
        left = part()
        while self._peek()[0] == "sign" and self._peek()[1] in signs:
            left = self._calculation(left, self._next()[1], part())
        return left

    def _calculation(self, left: Expression, sign: str, right: Expression) -> Expression:
        return lambda names: _calculate(sign, left(names), right(names))

    def _unit(self) -> Expression:
        kind, token = self._next()
        if token == "(":
            inner = self.any_of()
            self._expect(")")
            return inner
        if token == "-":
            operand = self._unit()
            return lambda names: _calculate("-", 0, operand(names))
        if kind in ("word", "quoted"):
            return self._property((kind, token))
        return self._constant(kind, token)

    def _constant(self, kind: str, token: str) -> Expression:
        value: object
        if kind == "string":
            value = token[1:-1].replace("''", "'")
        elif kind == "number":
            value = float(token) if re.search(r"[.eE]", token) else int(token)
        elif kind == "parameter" and token in self._parameters:
            value = self._parameters[token]
        else:
            raise self._wrong(f"near '{token}'")
        return lambda names: value

    def _property(self, token: tuple[str, str]) -> Expression:
        kind, name = token
        if kind == "quoted":
            plain = name[1:-1].replace(name[-1] * 2, name[-1])
            return lambda names: names.user(plain)
        upper = name.upper()
        if upper in ("TRUE", "FALSE", "NULL"):
            constant = {"TRUE": True, "FALSE": False}.get(upper)
            return lambda names: constant
        if upper in ("SYS", "USER") and self._accept("."):
            inner = self._bare(self._next())
            if upper == "SYS" and inner.lower() not in self._system:
                raise self._wrong(f"near 'sys.{inner}', which is no property")
            return (lambda names: names.system(inner)) if upper == "SYS" else (lambda names: names.user(inner))
        if kind != "word" or upper in ("AND", "OR", "NOT", "LIKE", "IN", "IS", "ESCAPE", "EXISTS"):
            raise self._wrong(f"near '{name}'")
        return lambda names: names.user(name)

    def _bare(self, token: tuple[str, str]) -> str:
        kind, name = token
        if kind not in ("word", "quoted"):
            raise self._wrong(f"near '{name}'")
        return name if kind == "word" else name[1:-1].replace(name[-1] * 2, name[-1])

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("", "the end")

    def _next(self) -> tuple[str, str]:
        token = self._peek()
        self._at += 1
        return token

    def _accept(self, text: str) -> bool:
        kind, token = self._peek()
        if kind in ("word", "sign") and token.upper() == text:
            self._at += 1
            return True
        return False

    def _expect(self, text: str) -> None:
        if not self._accept(text):
            raise self._wrong(f"near '{self._peek()[1]}', where '{text}' is wanted")

    def _wrong(self, where: str) -> Refusal:
        return Refusal("com.microsoft:argument-error", f"There was an error parsing the SQL expression {where}.")


def _not(value: Value) -> Value:
    return None if value is None else not value


def _both(values: list[Value]) -> Value:
    if any(value is False for value in values):
        return False
    return None if any(value is None for value in values) else all(values)


def _either(values: list[Value]) -> Value:
    if any(value is True for value in values):
        return True
    return None if any(value is None for value in values) else any(values)


def _compare(sign: str, left: Value, right: Value) -> Value:
    if left is None or right is None:
        return None
    numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
    if not numbers and type(left) is not type(right) and not (isinstance(left, str) and isinstance(right, str)):
        return None
    return _COMPARE[sign](left, right)


def _calculate(sign: str, left: Value, right: Value) -> Value:
    if isinstance(left, str) and isinstance(right, str) and sign == "+":
        return left + right
    if not isinstance(left, (int, float)) or not isinstance(right, (int, float)):
        return None
    return None if right == 0 and sign in "/%" else _CALCULATE[sign](left, right)


def _alike(value: Value, pattern: Value, escape: Value) -> Value:
    if not isinstance(value, str) or not isinstance(pattern, str):
        return None
    return _pattern(pattern, escape if isinstance(escape, str) else "").fullmatch(value) is not None


def _pattern(pattern: str, escape: str) -> re.Pattern[str]:
    """LIKE as an expression. Case does not matter: clients may rely on neither, so the wider one is emulated."""
    parts = []
    letters = iter(pattern)
    for letter in letters:
        if letter == escape:
            parts.append(re.escape(next(letters, "")))
        else:
            parts.append({"%": ".*", "_": "."}.get(letter) or re.escape(letter))
    return re.compile("".join(parts), re.DOTALL | re.IGNORECASE)
