"""Acme's options and abilities."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Annotated

import msgspec
from amb_core import config
from amb_core.broker import Capabilities, Connection


class AcmeBroker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The bus in a folder of files, for processes on one machine."""

    #: The folder; it is made if it is not there. A path, or ``acme:///path``.
    folder: str = "acme-spool"
    #: Seconds after which a delivery that is neither settled nor extended goes to another member.
    lease: Annotated[float, msgspec.Meta(ge=0.2)] = 30.0
    #: Seconds after which a waiting subscriber notices what another process has published.
    poll: Annotated[float, msgspec.Meta(gt=0)] = 0.05
    #: Publishing waits until the disk has the message.
    sync: bool = False

    def __post_init__(self) -> None:
        config.validate(self)

    def __repr__(self) -> str:
        return config.masked_repr(self)

    @property
    def capabilities(self) -> Capabilities:
        """A folder has no delays, no order and no history."""
        return Capabilities(
            durable=True,
            confirm="fsynced" if self.sync else "accepted",
            groups=True,
            durable_groups=True,
            redelivery="broker",
            lease=self.lease,
            extend_lease=True,
            delivery_count="native",
            return_unstarted=True,
        )

    def connect(self) -> AbstractAsyncContextManager[Connection]:
        """Make the folder, or find it."""
        from ._connection import connect

        return connect(self)
