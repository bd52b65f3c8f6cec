"""The conformance kit: what every broker must do, as tests that a broker passes or fails by case id.

For a broker of your own, in a test file::

    from amb_core.testing import conformance_suite

    TestMyBroker = conformance_suite(lambda: MyBroker("localhost:1234", lease=1.0))

gives one pytest test per case id. Cases about abilities that the broker does not declare check that the bus
refuses them. Restart, proxy and credential cases need a `Rig` that says how. `conform` runs the same cases
without pytest and returns a `Report`.
"""

from __future__ import annotations

from ._ids import IDS
from ._ledger import Ledger, Recorder
from ._report import Outcome, Report
from ._runner import conform
from ._target import Control, Rig, Target, rig_for
from ._wait import eventually, stays
from .proxy import FaultProxy
from .suite import conformance_suite
from .tamper import TamperedBroker

__all__ = [
    "IDS",
    "Control",
    "FaultProxy",
    "Ledger",
    "Outcome",
    "Recorder",
    "Report",
    "Rig",
    "TamperedBroker",
    "Target",
    "conform",
    "conformance_suite",
    "eventually",
    "rig_for",
    "stays",
]
