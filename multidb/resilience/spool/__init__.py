"""The spool: records on the local disk, until a server that is away takes them."""

from multidb.resilience.spool._lines import MAX_RECORD_BYTES
from multidb.resilience.spool._records import Batch, Limits, SpooledRecord, SpoolStats
from multidb.resilience.spool._source import Position
from multidb.resilience.spool._spool import Spool

__all__ = ["MAX_RECORD_BYTES", "Batch", "Limits", "Position", "Spool", "SpoolStats", "SpooledRecord"]
