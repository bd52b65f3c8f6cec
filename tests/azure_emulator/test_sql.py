"""SQL filters, case by case."""

from __future__ import annotations

import pytest

from tests.servers.servicebus.entry import Refusal
from tests.servers.servicebus.sql import parse


class Names:
    """The properties of a message."""

    def system(self, name: str) -> object:
        return {"label": "Label", "messageid": None}[name.lower()]

    def user(self, name: str) -> object:
        known = {"a": "text", "n": 3, "f": 1.5, "t": True, "q": "it's", "p": "50%_\\", "odd name": "x", "e": ""}
        return known.get(name)


_CASES = [
    ("1=1", True), ("a = 'text'", True), ("a = 'Text'", False), ("a <> 'other'", True), ("a != 'text'", False),
    ("user.a = 'text'", True), ("sys.Label = 'Label'", True), ("sys.MessageId IS NULL", True),
    ("q = 'it''s'", True), ("[odd name] = 'x'", True), ('"odd name" = \'x\'', True), ("e = ''", True),
    ("n > 2 AND n >= 3 AND n < 4 AND n <= 3", True), ("n = 3.0 AND f = 1.5", True), ("n + 2 * 3 = 9", True),
    ("(n + 2) * 3 = 15", True), ("-n = -3", True), ("n % 2 = 1", True), ("n / 0 = 1", None), ("t = TRUE", True),
    ("t", True), ("NOT t", False), ("n = 'text'", None), ("missing = 1", None), ("NOT missing = 1", None),
    ("missing = 1 OR n = 3", True), ("missing = 1 AND n = 4", False), ("missing = 1 AND n = 3", None),
    ("missing IS NULL", True), ("n IS NOT NULL", True), ("EXISTS(n)", True), ("EXISTS(missing)", False),
    ("NOT EXISTS(missing) AND EXISTS(a)", True),
    ("a IN ('x', 'text')", True), ("a NOT IN ('x')", True), ("n IN (1, 2)", False), ("missing IN ('x')", None),
    ("a LIKE 't%'", True), ("a LIKE 'T_XT'", True), ("a LIKE 'tex'", False), ("a NOT LIKE 'z%'", True),
    (r"p LIKE '50\%\_\\' ESCAPE '\'", True), (r"p LIKE '50\%' ESCAPE '\'", False), ("missing LIKE '%'", None),
    ("n = 3 OR n = 4 AND n = 5", True), ("(n = 3 OR n = 4) AND n = 5", False), ("a = @text AND n = @n", True),
    ("a + 'x' = 'textx'", True), ("not n = 4 and A IS NULL", True), ("e LIKE '%'", True),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), _CASES)
def test_an_expression_has_its_value(text: str, value: object) -> None:
    assert parse(text, {"@text": "text", "@n": 3}, ("label", "messageid"))(Names()) is value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a =",
        "a = 'x",
        "a LIKE",
        "a NOT 'x'",
        "(a = 1",
        "a = 1)",
        "a IN ()",
        "a = @none",
        "a = 1 b",
        "AND",
        "a ; b",
        "sys.none = 1",
    ],
)
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(Refusal, match="parsing the SQL expression"):
        parse(text, {}, ())
