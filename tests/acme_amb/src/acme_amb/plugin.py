"""What AMB finds through the entry point ``acme``."""

from __future__ import annotations

from amb_core.hookspecs import BrokerRegister, SerializerRegister, hookimpl


@hookimpl
def amb_register_brokers(register: BrokerRegister) -> None:
    """``acme``, also as ``acme:///folder``; the variable is that of Acme's other tools."""
    from .broker import AcmeBroker

    register("acme", AcmeBroker, url_option="folder", env={"folder": "ACME_SPOOL"})


@hookimpl
def amb_register_serializers(register: SerializerRegister) -> None:
    """``acme``."""
    from .packed import CONTENT_TYPE, PackedSerializer

    register("acme", PackedSerializer, content_types=(CONTENT_TYPE,))
