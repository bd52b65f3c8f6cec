"""A broker in a folder of files, and a serializer of compressed JSON."""

from __future__ import annotations

from .broker import AcmeBroker as AcmeBroker
from .packed import PackedSerializer as PackedSerializer
