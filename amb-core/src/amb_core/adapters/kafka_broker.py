"""`KafkaBroker` by its documented import path; see `amb_core.adapters`."""

from __future__ import annotations

from . import lazy

__getattr__ = lazy("KafkaBroker")
