"""AMB on Redis: Streams by default, plain pub/sub with ``use_streams=False``."""

from __future__ import annotations

from .broker import RedisBroker

__all__ = ["RedisBroker"]
