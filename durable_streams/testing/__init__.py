"""What tests need: faults on demand, and kits that hold your own implementations to the library's promises.

Faults:   `FaultTransport` refuses, resets, cuts, delays, reorders and repeats requests, from a seed or from a script
S2:       `S2Fake`, an S2 server in memory that fails when it is told to
Kits:     `check_transport`, `check_store`: one reusable test for each interface that you may implement
History:  `check_linearizable` says whether what concurrent clients were told could come from one object
"""

# Refuse to be half of another distribution before anything is imported.
from .._collision import refuse_collision

refuse_collision()

# Faults
from .faults import Fault as Fault
from .faults import FaultKind as FaultKind
from .faults import FaultStatistics as FaultStatistics
from .faults import FaultTransport as FaultTransport
from .faults import RequestFacts as RequestFacts

# An S2 server
from ._s2.exchange import S2Request as S2Request
from ._s2.fake import S2Fake as S2Fake
from ._s2.faults import S2BadFrame as S2BadFrame
from ._s2.faults import S2Fault as S2Fault
from ._s2.faults import S2FaultKind as S2FaultKind
from ._s2.faults import S2Faults as S2Faults
from ._s2.faults import S2Operation as S2Operation
from ._s2.faults import S2WrongAck as S2WrongAck
from ._s2.call import S2Behaviour as S2Behaviour

# Kits
from .store_kit import check_store as check_store
from .transport_kit import check_transport as check_transport

# Histories of concurrent clients
from .linearizability import History as History
from .linearizability import Model as Model
from .linearizability import NotLinearizableError as NotLinearizableError
from .linearizability import Operation as Operation
from .linearizability import UndecidedError as UndecidedError
from .linearizability import Underway as Underway
from .linearizability import check_linearizable as check_linearizable

__all__ = [
    "Fault",
    "FaultKind",
    "FaultStatistics",
    "FaultTransport",
    "History",
    "Model",
    "NotLinearizableError",
    "Operation",
    "RequestFacts",
    "S2BadFrame",
    "S2Behaviour",
    "S2Fake",
    "S2Fault",
    "S2FaultKind",
    "S2Faults",
    "S2Operation",
    "S2Request",
    "S2WrongAck",
    "UndecidedError",
    "Underway",
    "check_linearizable",
    "check_store",
    "check_transport",
]

# The address a user would type, in tracebacks, docs and pickles.
for _value in list(globals().values()):
    if getattr(_value, "__module__", "").startswith(__name__ + "."):
        _value.__module__ = __name__
del _value
