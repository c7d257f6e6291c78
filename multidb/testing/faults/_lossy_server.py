"""
The process behind a `LossyFS`: it serves a `LossyDisk` to the kernel, and obeys its parent.

A process of its own, as a program that waits for its own file system may hold the interpreter's lock meanwhile. It
reads a JSON object a line, answers each with one, and ends when its parent does, without a trace.
"""

from __future__ import annotations

import errno
import json
import os
import select
import shutil
import stat
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from multidb.testing.faults import _fuse
from multidb.testing.faults._fuse import UNANSWERED, FuseMount, Op, Request
from multidb.testing.faults._lossy_disk import LossyDisk

if TYPE_CHECKING:
    from collections.abc import Callable

    from multidb.testing.faults._lossy_disk import Model

_BLOCK_BYTES = 4096
_PLENTY_BLOCKS = 1 << 28
_PARENT_POLL_MILLISECONDS = 500
_KEEP_CACHE = 2
_NO_REPLACE = 1
_SET_MODE, _SET_UID, _SET_GID, _SET_SIZE = 1, 2, 4, 8

NAMES: dict[int, str] = {
    Op.MKNOD: "create",
    Op.CREATE: "create",
    Op.MKDIR: "mkdir",
    Op.UNLINK: "unlink",
    Op.RMDIR: "rmdir",
    Op.RENAME: "rename",
    Op.RENAME2: "rename",
    Op.LINK: "link",
    Op.OPEN: "open",
    Op.READ: "read",
    Op.WRITE: "write",
    Op.FALLOCATE: "truncate",
    Op.FSYNC: "fsync",
    Op.FSYNCDIR: "fsyncdir",
}
"""What may fail, by the name it has in `LossyFS.fail()`. SETATTR is a "truncate" when it sets the size."""
_NOT_CHANGES = frozenset({"open", "read"})


@dataclass
class _Failure:
    operation: str
    number: int
    after_calls: int
    after_bytes: int
    times: int | None

    def room(self, size: int) -> int | None:
        """Return how many of *size* bytes go well; None when it is this call that fails."""
        if self.times == 0:
            return size
        if self.after_calls > 0:
            self.after_calls -= 1
            return size
        if self.after_bytes > 0:
            self.after_bytes -= (written := min(size, self.after_bytes))
            return written
        if self.times is not None:
            self.times -= 1
        return None


class Server:
    """Serves the kernel and the parent in turns."""

    def __init__(self, path: Path, model: Model, seed: int) -> None:
        """Mount an empty disk on *path*."""
        self._path = path
        self._parent = os.getppid()
        self._disk = LossyDisk(model, Random(seed))  # noqa: S311 -- to be repeated, not to be secret
        self._mount = FuseMount(path)
        self._poll = select.poll()
        self._poll.register(0, select.POLLIN)
        self._poll.register(self._mount.file, select.POLLIN)
        self._unread = b""
        self._ended = self._is_dismissed = False
        self._frozen = False
        self._changes_left: int | None = None
        self._failures: list[_Failure] = []
        self._counts: dict[str, int] = {}
        self._listings: dict[int, list[tuple[bytes, int, int]]] = {}

    def serve(self) -> None:
        """Go on until the parent says so, or is gone."""
        try:
            while not self._ended and os.getppid() == self._parent:
                for file, _ in self._poll.poll(_PARENT_POLL_MILLISECONDS):
                    if file == 0:
                        self._read_orders()
                    elif file == self._mount.file and not self._frozen:
                        self._serve_kernel()
        finally:
            self._mount.close()
            if not self._is_dismissed:  # The parent is gone, and cannot tidy up.
                shutil.rmtree(self._path.parent, ignore_errors=True)

    def _read_orders(self) -> None:
        received = os.read(0, 65536)
        self._ended = not received
        *lines, self._unread = (self._unread + received).split(b"\n")
        for line in lines:
            order = json.loads(line)
            answer = getattr(self, f"order_{order.pop('do')}")(**order)
            os.write(1, json.dumps(answer).encode() + b"\n")

    def order_stop(self) -> None:
        """Unmount and end."""
        self._ended = self._is_dismissed = True

    def order_cut(self, survivors: Any) -> None:
        """Cut the power, and come back with what the platter holds."""
        if not self._frozen:
            self._poll.unregister(self._mount.file)
        self._mount.close()
        self._disk.cut_power(survivors)
        self._listings.clear()
        self._frozen, self._changes_left = False, None
        self._mount = FuseMount(self._path)
        self._poll.register(self._mount.file, select.POLLIN)

    def order_freeze_after(self, changes: int) -> None:
        """Answer nothing any more after so many changes."""
        self._changes_left = changes
        self._freeze_in_time()

    def order_fail(self, **failure: Any) -> None:
        """Let an operation fail from now on."""
        self._failures.append(_Failure(**failure))

    def order_limit(self, capacity: int | None) -> None:
        """Set the size of the disk."""
        self._disk.capacity = capacity

    def order_heal(self) -> None:
        """End failures and limits."""
        self._failures.clear()
        self._disk.capacity = None

    def order_status(self) -> dict[str, Any]:
        """Say how much was asked so far."""
        return {"counts": self._counts, "frozen": self._frozen}

    def _freeze_in_time(self) -> None:
        if self._changes_left == 0 and not self._frozen:
            self._frozen = True
            self._poll.unregister(self._mount.file)

    def _serve_kernel(self) -> None:
        request = self._mount.read()
        if request is None:
            self._ended = True
            return
        name = NAMES.get(request.op)
        if request.op == Op.SETATTR and struct.unpack_from("<I", request.body)[0] & _SET_SIZE:
            name = "truncate"
        payload, error = self._outcome(request, name)
        if request.op not in UNANSWERED:
            self._mount.answer(request, payload, error)
        if name is not None:
            self._counts[name] = self._counts.get(name, 0) + 1
        if name is not None and name not in _NOT_CHANGES and not error and self._changes_left:
            self._changes_left -= 1
            self._freeze_in_time()

    def _outcome(self, request: Request, name: str | None) -> tuple[bytes, int]:
        handler = _HANDLERS.get(request.op)
        if handler is None:
            return b"", errno.ENOSYS
        try:
            room = self._room(name, request)
            return handler(self, request if room is None else _shortened(request, room)), 0
        except OSError as exc:
            return b"", exc.errno or errno.EIO

    def _room(self, name: str | None, request: Request) -> int | None:
        """Return how many bytes of a write go well where not all do. Raises the OSError of a failure."""
        size = struct.unpack_from("<I", request.body, 16)[0] if name == "write" else 0
        shortest = size
        for failure in self._failures:
            if failure.operation != name:
                continue
            room = failure.room(size)
            if room is None:
                if name == "fsync":
                    self._disk.fail_sync(request.node)
                raise OSError(failure.number, os.strerror(failure.number))
            shortest = min(shortest, room)
        return None if shortest == size else shortest

    def look_up(self, request: Request) -> bytes:
        """LOOKUP."""
        return _fuse.entry(self._disk.look_up(request.node, request.body.rstrip(b"\0")))

    def get_attributes(self, request: Request) -> bytes:
        """GETATTR."""
        return _fuse.attributes(self._disk.node(request.node))

    def set_attributes(self, request: Request) -> bytes:
        """SETATTR: the size, the mode, the owner; the times are our own."""
        valid, _, _, size = struct.unpack_from("<IIQQ", request.body)
        mode, _, uid, gid = struct.unpack_from("<IIII", request.body, 68)
        node = self._disk.node(request.node)
        if valid & _SET_SIZE:
            self._disk.resize(request.node, size)
        if valid & _SET_MODE:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        node.uid = uid if valid & _SET_UID else node.uid
        node.gid = gid if valid & _SET_GID else node.gid
        return _fuse.attributes(node)

    def make_node(self, request: Request) -> bytes:
        """MKNOD: files only."""
        (mode,) = struct.unpack_from("<I", request.body)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EPERM, "files only")
        return _fuse.entry(self._make(request, mode, 16))

    def make_folder(self, request: Request) -> bytes:
        """MKDIR."""
        (mode,) = struct.unpack_from("<I", request.body)
        return _fuse.entry(self._make(request, stat.S_IFDIR | stat.S_IMODE(mode), 8))

    def create(self, request: Request) -> bytes:
        """CREATE: make a file and open it."""
        (_, mode) = struct.unpack_from("<II", request.body)
        node = self._make(request, stat.S_IFREG | stat.S_IMODE(mode), 16)
        node.opened += 1
        return _fuse.entry(node) + _opened(node.number)

    def unlink(self, request: Request) -> bytes:
        """UNLINK."""
        self._disk.remove(request.node, request.body.rstrip(b"\0"), is_folder=False)
        return b""

    def remove_folder(self, request: Request) -> bytes:
        """RMDIR."""
        self._disk.remove(request.node, request.body.rstrip(b"\0"), is_folder=True)
        return b""

    def rename(self, request: Request) -> bytes:
        """RENAME and RENAME2."""
        (target,) = struct.unpack_from("<Q", request.body)
        flags, start = 0, 8
        if request.op == Op.RENAME2:
            (flags,) = struct.unpack_from("<I", request.body, 8)
            start = 16
        if flags & ~_NO_REPLACE:
            raise OSError(errno.EINVAL, "not here")
        old, new, _ = request.body[start:].split(b"\0", 2)
        self._disk.rename(request.node, old, target, new, replace=not flags)
        return b""

    def link(self, request: Request) -> bytes:
        """LINK."""
        (number,) = struct.unpack_from("<Q", request.body)
        return _fuse.entry(self._disk.link(number, request.node, request.body[8:].rstrip(b"\0")))

    def open(self, request: Request) -> bytes:
        """OPEN."""
        self._disk.node(request.node).opened += 1
        return _opened(request.node)

    def read(self, request: Request) -> bytes:
        """READ."""
        _, offset, size = struct.unpack_from("<QQI", request.body)
        return self._disk.read(request.node, offset, size)

    def write(self, request: Request) -> bytes:
        """WRITE."""
        _, offset, size = struct.unpack_from("<QQI", request.body)
        return struct.pack("<II", self._disk.write(request.node, offset, request.body[40 : 40 + size]), 0)

    def statistics(self, _: Request) -> bytes:
        """STATFS."""
        capacity, free = self._disk.capacity, self._disk.free
        if capacity is None or free is None:
            return _fuse.statistics(_BLOCK_BYTES, _PLENTY_BLOCKS, _PLENTY_BLOCKS)
        return _fuse.statistics(_BLOCK_BYTES, capacity // _BLOCK_BYTES, free // _BLOCK_BYTES)

    def release(self, request: Request) -> bytes:
        """RELEASE."""
        self._disk.close(request.node)
        return b""

    def sync(self, request: Request) -> bytes:
        """FSYNC and FSYNCDIR."""
        self._disk.sync(request.node)
        return b""

    def allocate(self, request: Request) -> bytes:
        """FALLOCATE: only to grow."""
        _, offset, length, mode = struct.unpack_from("<QQQI", request.body)
        if mode:
            raise OSError(errno.EOPNOTSUPP, "not here")
        size = max(offset + length, len(self._disk.node(request.node).data))
        self._disk.resize(request.node, size)
        return b""

    def open_folder(self, request: Request) -> bytes:
        """OPENDIR: the names as they are now."""
        names = self._disk.node(request.node).folder
        listing = [(b".", request.node, stat.S_IFDIR), (b"..", request.node, stat.S_IFDIR)]
        listing += [(name, number, self._disk.node(number).mode) for name, number in sorted(names.items())]
        handle = max(self._listings, default=0) + 1
        self._listings[handle] = listing
        return struct.pack("<QII", handle, 0, 0)

    def read_folder(self, request: Request) -> bytes:
        """READDIR."""
        handle, offset, size = struct.unpack_from("<QQI", request.body)
        return _fuse.directory(self._listings[handle], offset, size)

    def release_folder(self, request: Request) -> bytes:
        """RELEASEDIR."""
        (handle,) = struct.unpack_from("<Q", request.body)
        self._listings.pop(handle, None)
        return b""

    def _make(self, request: Request, mode: int, name_at: int) -> Any:
        name = request.body[name_at:].rstrip(b"\0")
        return self._disk.make(request.node, name, mode, request.uid, request.gid)


def _opened(number: int) -> bytes:
    return struct.pack("<QII", number, _KEEP_CACHE, 0)


def _shortened(request: Request, size: int) -> Request:
    head = request.body[:16] + struct.pack("<I", size) + request.body[20:]
    return request._replace(body=head)


def _nothing(_: Server, __: Request) -> bytes:
    return b""


_HANDLERS: dict[int, Callable[[Server, Request], bytes]] = {
    Op.INIT: lambda _, __: _fuse.init_answer(),
    Op.DESTROY: _nothing,
    Op.FORGET: _nothing,
    Op.BATCH_FORGET: _nothing,
    Op.INTERRUPT: _nothing,
    Op.LOOKUP: Server.look_up,
    Op.GETATTR: Server.get_attributes,
    Op.SETATTR: Server.set_attributes,
    Op.MKNOD: Server.make_node,
    Op.MKDIR: Server.make_folder,
    Op.CREATE: Server.create,
    Op.UNLINK: Server.unlink,
    Op.RMDIR: Server.remove_folder,
    Op.RENAME: Server.rename,
    Op.RENAME2: Server.rename,
    Op.LINK: Server.link,
    Op.OPEN: Server.open,
    Op.READ: Server.read,
    Op.WRITE: Server.write,
    Op.STATFS: Server.statistics,
    Op.RELEASE: Server.release,
    Op.FSYNC: Server.sync,
    Op.FSYNCDIR: Server.sync,
    Op.OPENDIR: Server.open_folder,
    Op.READDIR: Server.read_folder,
    Op.RELEASEDIR: Server.release_folder,
    Op.FALLOCATE: Server.allocate,
}


def main() -> None:
    """Serve as the first argument, JSON, says."""
    options = json.loads(sys.argv[1])
    try:
        server = Server(Path(options["path"]), options["model"], options["seed"])
    except OSError as exc:
        os.write(1, json.dumps({"error": f"cannot mount: {exc.strerror}"}).encode() + b"\n")
        return
    os.write(1, b"{}\n")
    server.serve()
