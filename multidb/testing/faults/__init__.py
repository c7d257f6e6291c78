"""
Faults for tests: networks, servers, backends and disks that fail on demand, and programs that are killed.

    TcpProxy            between a client and a server: delay, loss, partitions, replies that never arrive
    FaultyBackend       around a backend: errors before or after the fact, hangs, wrong results
    paused, killed, …   of the servers of `multidb.testing.servers`
    LossyFS             a file system whose power can be cut, that fills up, that returns errors
    torn_copies, …      files with every possible torn tail; a limit on their size
    Crasher             kills a program over and over, and keeps the ledger of what was acknowledged

What depends on chance takes a *seed*, and says it when something fails; MULTIDB_TEST_SEED sets it for all.
"""

from multidb.testing.faults._backend import Call, FaultyBackend
from multidb.testing.faults._crasher import Crasher, CrasherError, Ledger
from multidb.testing.faults._files import TornCopy, file_size_limit, start_of_last_line, torn_copies
from multidb.testing.faults._lossyfs import LossyFS, lossyfs_skip_reason
from multidb.testing.faults._plans import (
    FEWER,
    Delay,
    Fail,
    Fault,
    Hang,
    Plan,
    Wrong,
    by_chance,
    in_order,
    one_less,
)
from multidb.testing.faults._proxy import TcpProxy
from multidb.testing.faults._seed import note_seed, pick_seed, seeded
from multidb.testing.faults._servers import (
    MONGO_TEST_COMMANDS,
    killed,
    mongo_failing,
    mongo_locked,
    mongo_step_down,
    paused,
    postgres_disk_full,
    postgres_read_only,
    postgres_terminate,
    restarted,
    valkey_cannot_save,
    valkey_out_of_memory,
    valkey_read_only,
)
from multidb.testing.faults._weather import Direction, Matching, ProxyStats

__all__ = [
    "FEWER",
    "MONGO_TEST_COMMANDS",
    "Call",
    "Crasher",
    "CrasherError",
    "Delay",
    "Direction",
    "Fail",
    "Fault",
    "FaultyBackend",
    "Hang",
    "Ledger",
    "LossyFS",
    "Matching",
    "Plan",
    "ProxyStats",
    "TcpProxy",
    "TornCopy",
    "Wrong",
    "by_chance",
    "file_size_limit",
    "in_order",
    "killed",
    "lossyfs_skip_reason",
    "mongo_failing",
    "mongo_locked",
    "mongo_step_down",
    "note_seed",
    "one_less",
    "paused",
    "pick_seed",
    "postgres_disk_full",
    "postgres_read_only",
    "postgres_terminate",
    "restarted",
    "seeded",
    "start_of_last_line",
    "torn_copies",
    "valkey_cannot_save",
    "valkey_out_of_memory",
    "valkey_read_only",
]
