"""
The kernel's side of a file system in user space: /dev/fuse, without libfuse. Linux only.

The layouts are those of linux/fuse.h, protocol 7.31, which kernels from 5.2 on speak.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import os
import shutil
import socket
import struct
import subprocess
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from multidb.testing.faults._lossy_disk import Node

MAX_WRITE_BYTES = 128 * 1024
DEVICE = Path("/dev/fuse")

_HEADER = struct.Struct("<IIQQIIIHH")
_ANSWER = struct.Struct("<IiQ")
_ATTRIBUTES = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY = struct.Struct("<QQQQII")
_INIT = struct.Struct("<IIIIHHIIHHIIH22x")
_MAJOR, _MINOR = 7, 31
_BIG_WRITES, _MAX_PAGES = 1 << 5, 1 << 22
_PAGE_BYTES = 4096
# Only the kernel changes what is here, and it knows what it did.
_VALID_SECONDS = 1 << 20
_NOSUID_NODEV = 2 | 4
_DETACH = 2


class Op(IntEnum):
    """What the kernel asks."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    RENAME2 = 45


UNANSWERED = frozenset({Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT})


class Request(NamedTuple):
    """One question of the kernel."""

    op: int
    unique: int
    node: int
    uid: int
    gid: int
    body: bytes


class FuseMount:
    """A file system mounted on the folder *path*, until `close()`."""

    def __init__(self, path: Path) -> None:
        """Mount. Raises OSError where that is not allowed."""
        self._path = path
        self._by_helper = False
        try:
            self.file = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
            self._mount()
        except PermissionError:
            helper = _helper()
            if helper is None:
                raise
            self.file = _mounted_by_helper(helper, path)
            self._by_helper = True

    def read(self) -> Request | None:
        """Return the next request; None when the file system was unmounted."""
        while True:
            try:
                data = os.read(self.file, MAX_WRITE_BYTES + 2 * _PAGE_BYTES)
            except FileNotFoundError:  # The request was interrupted before it was read.
                continue
            except OSError:
                return None
            _, op, unique, node, uid, gid, _, _, _ = _HEADER.unpack_from(data)
            return Request(op, unique, node, uid, gid, data[_HEADER.size :])

    def answer(self, request: Request, payload: bytes = b"", error: int = 0) -> None:
        """Answer *request* with *payload*, or with the number of an *error*."""
        # It may have been interrupted, and nobody waits any more.
        with contextlib.suppress(FileNotFoundError):
            os.write(self.file, _ANSWER.pack(_ANSWER.size + len(payload), -error, request.unique) + payload)

    def close(self) -> None:
        """Break every request that waits, and unmount, also what is in use."""
        os.close(self.file)
        unmount(self._path, by_helper=self._by_helper)

    def _mount(self) -> None:
        options = (
            f"fd={self.file},rootmode=40755,user_id={os.getuid()},group_id={os.getgid()},"
            "default_permissions,allow_other"
        )
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"multidb-lossy", os.fsencode(self._path), b"fuse", _NOSUID_NODEV, options.encode()):
            number = ctypes.get_errno()
            os.close(self.file)
            raise OSError(number, os.strerror(number))


def unmount(path: Path, *, by_helper: bool) -> None:
    """Unmount what is on *path*, if anything is."""
    if not by_helper:
        ctypes.CDLL(None).umount2(os.fsencode(path), _DETACH)
    elif helper := _helper():
        subprocess.run([helper, "-u", "-q", "-z", "--", path], check=False)  # noqa: S603 -- a system program


def _helper() -> str | None:
    return shutil.which("fusermount3") or shutil.which("fusermount")


def _mounted_by_helper(helper: str, path: Path) -> int:
    """Let the setuid program of FUSE mount; return the file that it opened and hands over."""
    ours, its = socket.socketpair()
    with ours, its:
        done = subprocess.run(  # noqa: S603 -- a system program
            [helper, "-o", "rw,nosuid,nodev,default_permissions", "--", path],
            check=False,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=(its.fileno(),),
            env={**os.environ, "_FUSE_COMMFD": str(its.fileno())},
        )
        if done.returncode:
            raise PermissionError(errno.EPERM, done.stderr.strip())
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_LEN(4))
    files = array.array("i", ancillary[0][2])
    os.set_inheritable(files[0], False)
    return files[0]


def init_answer() -> bytes:
    """Return what the kernel wants to know first."""
    pages = MAX_WRITE_BYTES // _PAGE_BYTES
    flags = _BIG_WRITES | _MAX_PAGES
    return _INIT.pack(_MAJOR, _MINOR, MAX_WRITE_BYTES, flags, 16, 12, MAX_WRITE_BYTES, 1, pages, 0, 0, 0, 0)


def attributes(node: Node) -> bytes:
    """Return the answer to GETATTR and SETATTR."""
    return struct.pack("<QII", _VALID_SECONDS, 0, 0) + _packed(node)


def entry(node: Node) -> bytes:
    """Return the answer to LOOKUP and to what makes a name."""
    return _ENTRY.pack(node.number, 0, _VALID_SECONDS, _VALID_SECONDS, 0, 0) + _packed(node)


def statistics(block_bytes: int, blocks: int, free: int) -> bytes:
    """Return the answer to STATFS."""
    return struct.pack(
        "<QQQQQIIII24x", blocks, free, free, 1 << 20, 1 << 19, block_bytes, 255, block_bytes, 0
    )


def directory(entries: list[tuple[bytes, int, int]], offset: int, size: int) -> bytes:
    """Return the answer to READDIR: as many (name, node, mode) from the *offset*-th on as go into *size* bytes."""
    packed = b""
    for index, (name, number, mode) in enumerate(entries[offset:], offset + 1):
        one = struct.pack("<QQII", number, index, len(name), mode >> 12) + name
        one += bytes(-len(one) % 8)
        if len(packed) + len(one) > size:
            break
        packed += one
    return packed


def _packed(node: Node) -> bytes:
    seconds, nanoseconds = divmod(node.changed_ns, 10**9)
    size = len(node.data)
    links = 2 if node.names is not None else node.links
    return _ATTRIBUTES.pack(
        node.number,
        size,
        -(-size // 512),
        *(seconds, seconds, seconds),
        *(nanoseconds, nanoseconds, nanoseconds),
        *(node.mode, links, node.uid, node.gid, 0, _PAGE_BYTES, 0),
    )
