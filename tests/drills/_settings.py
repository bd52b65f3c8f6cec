"""A broker as the environment variables that another process makes the same broker from."""

from __future__ import annotations

from typing import Any

import msgspec
from amb_core._plugins import installed_brokers
from amb_core.broker import Broker


def settings(broker: Broker) -> dict[str, str]:
    """``AMB_BROKER`` and ``AMB_<BROKER>_<OPTION>`` for every option that is not at its default."""
    name = next(name for name, make in installed_brokers() if make is type(broker))
    assert isinstance(broker, msgspec.Struct)
    found = {"AMB_BROKER": name}
    for field in msgspec.structs.fields(broker):
        value = getattr(broker, field.name)
        default = field.default_factory() if callable(field.default_factory) else field.default
        if value != default:
            found[f"AMB_{name}_{field.name}".upper().replace("-", "_")] = _text(value)
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
