"""The conformance kit: what every broker must do, as tests that a broker passes or fails by case id.

For a broker of your own, in a test file::

    from amb_core.testing import conformance_suite

    TestMyBroker = conformance_suite(lambda: MyBroker("localhost:1234", lease=1.0))

gives one pytest test per case id. Cases about abilities that the broker does not declare check that the bus
refuses them. Restart, proxy and credential cases need a `Rig` that says how. `conform` runs the same cases
without pytest and returns a `Report`.

For fault tests of your own there are the parts that the kit is made of: `FaultProxy` between a client and a server
(``reset``, ``refuse``, ``black_hole`` each way, ``latency``, ``cut_after`` so many bytes, ``restore``), `Child` for
programs in processes of their own (``terminate``, ``kill``, ``freeze``, ``thaw``: SIGTERM, SIGKILL, SIGSTOP, SIGCONT),
`Control` for servers, and `eventually` and `stays` to wait with a deadline.
"""

from __future__ import annotations

from ._ids import IDS
from ._ledger import Ledger, Recorder
from ._report import Outcome, Report
from ._runner import conform
from ._target import Control, Rig, Target, rig_for
from ._wait import eventually, stays
from .processes import Child
from .proxy import FaultProxy
from .suite import conformance_suite
from .tamper import TamperedBroker

__all__ = [
    "IDS",
    "Child",
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
