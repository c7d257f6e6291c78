"""
A disk in memory that knows what was synced, and so what a power cut leaves of it.

What is asked of it takes effect at once; beside it there is what the platter holds. The data of a file gets there by
the sync of the file, a name by the sync of its folder. Modes, owners and times are taken to be durable.
"""

from __future__ import annotations

import errno
import stat
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from random import Random

Model: TypeAlias = Literal["strict", "ordered"]
Survivors: TypeAlias = Literal["nothing", "something"]

ROOT = 1

_Change: TypeAlias = "tuple[tuple[int, bytes, int | None], ...]"
"""What one call does to names, all or nothing: (folder, name, what it names now)."""


@dataclass
class Node:
    """A file, or a folder where *names* is not None."""

    number: int
    mode: int
    uid: int
    gid: int
    changed_ns: int = field(default_factory=time.time_ns)
    data: bytearray = field(default_factory=bytearray)
    names: dict[bytes, int] | None = None
    links: int = 0
    opened: int = 0
    platter: bytearray = field(default_factory=bytearray)
    platter_names: dict[bytes, int] = field(default_factory=dict)
    writes: list[tuple[int, bytes | None]] = field(default_factory=list)
    """Not synced yet: (offset, bytes), or with None a new size."""

    @property
    def folder(self) -> dict[bytes, int]:
        """Its names. Raises ENOTDIR where it is a file."""
        if self.names is None:
            raise OSError(errno.ENOTDIR, "not a folder")
        return self.names


class LossyDisk:
    """
    Files and folders by node number; every call raises OSError as the system call would.

    *model* `strict` is what POSIX promises and no more. `ordered` is like ext4: names become durable in their order,
    all of them with the sync of any file or folder.
    """

    def __init__(self, model: Model, random: Random) -> None:
        """Begin with an empty root folder."""
        self.model = model
        self.capacity: int | None = None
        self._random = random
        self._used = 0
        self._last = ROOT
        self._journal: list[_Change] = []
        root = Node(ROOT, stat.S_IFDIR | 0o755, 0, 0, names={}, links=1)
        self.nodes: dict[int, Node] = {ROOT: root}

    @property
    def free(self) -> int | None:
        """How many bytes of file content there is room for; None: no limit."""
        return None if self.capacity is None else max(0, self.capacity - self._used)

    def node(self, number: int) -> Node:
        """Return a node. Raises ESTALE where there is none."""
        try:
            return self.nodes[number]
        except KeyError:
            raise OSError(errno.ESTALE, "no such node") from None

    def look_up(self, folder: int, name: bytes) -> Node:
        """Return what *name* names. Raises ENOENT."""
        try:
            return self.nodes[self.node(folder).folder[name]]
        except KeyError:
            raise OSError(errno.ENOENT, "no such name") from None

    def make(self, folder: int, name: bytes, mode: int, uid: int, gid: int) -> Node:
        """Make a file or a folder, as *mode* says."""
        names = self.node(folder).folder
        if name in names:
            raise OSError(errno.EEXIST, "exists")
        if self.free == 0:
            raise OSError(errno.ENOSPC, "full")
        self._last += 1
        made = Node(self._last, mode, uid, gid, names={} if stat.S_ISDIR(mode) else None)
        self.nodes[made.number] = made
        self._rename((folder, name, made.number))
        return made

    def link(self, number: int, folder: int, name: bytes) -> Node:
        """Give a file another name."""
        if name in self.node(folder).folder:
            raise OSError(errno.EEXIST, "exists")
        self._rename((folder, name, number))
        return self.node(number)

    def remove(self, folder: int, name: bytes, *, is_folder: bool) -> None:
        """Remove the name of a file, or an empty folder."""
        node = self.look_up(folder, name)
        if is_folder and node.folder:
            raise OSError(errno.ENOTEMPTY, "not empty")
        if not is_folder and node.names is not None:
            raise OSError(errno.EISDIR, "a folder")
        self._rename((folder, name, None))
        self._forget_if_unused(node)

    def rename(self, source: int, old: bytes, target: int, new: bytes, *, replace: bool = True) -> None:
        """Move a name, in one step."""
        node = self.look_up(source, old)
        present = self.node(target).folder.get(new)
        if present == node.number:
            return
        if present is not None:
            if not replace:
                raise OSError(errno.EEXIST, "exists")
            self._check_replaceable(node, self.node(present))
        self._rename((source, old, None), (target, new, node.number))
        if present is not None:
            self._forget_if_unused(self.node(present))

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Return what is there of *size* bytes from *offset*."""
        return bytes(self.node(number).data[offset : offset + size])

    def write(self, number: int, offset: int, data: bytes) -> int:
        """Write as much as there is room for; return how much. Raises ENOSPC where that is nothing."""
        node = self.node(number)
        growth = max(0, offset + len(data) - len(node.data))
        if self.free is not None and growth > self.free:
            data = data[: len(data) - growth + self.free]
            if not data:
                raise OSError(errno.ENOSPC, "full")
        self._note(node, offset, data)
        return len(data)

    def resize(self, number: int, size: int) -> None:
        """Cut a file, or let it grow by zeros."""
        node = self.node(number)
        if self.free is not None and size - len(node.data) > self.free:
            raise OSError(errno.ENOSPC, "full")
        self._note(node, size, None)

    def close(self, number: int) -> None:
        """Count one open file less."""
        node = self.node(number)
        node.opened -= 1
        self._forget_if_unused(node)

    def sync(self, number: int) -> None:
        """Make the content of a file, or the names in a folder, durable."""
        node = self.node(number)
        _apply(node.platter, node.writes)
        node.writes.clear()
        if self.model == "ordered":
            self._sync_names(None)
        elif node.names is not None:
            self._sync_names(number)

    def fail_sync(self, number: int) -> None:
        """Lose what was to be synced, as Linux does after EIO: it is still read, and a second sync does not help."""
        self.node(number).writes.clear()

    def cut_power(self, survivors: Survivors) -> None:
        """
        Forget what was not synced.

        With *survivors* `something` a part of it, drawn at random, has got to the platter all the same: of the names
        the first so many, of the writes to a file the first so many and a part of the next, or any, with zeros in
        the place of the missing.
        """
        if survivors == "something":
            self._save_something()
        self._journal.clear()
        reachable = set(self._reachable(ROOT))
        self.nodes = {number: node for number, node in self.nodes.items() if number in reachable}
        for node in self.nodes.values():
            node.opened = 0
            node.writes.clear()
            node.data = bytearray(node.platter)
            if node.names is not None:
                node.names = dict(node.platter_names)
        self._count_again()

    def _check_replaceable(self, node: Node, present: Node) -> None:
        if present.names is not None and node.names is None:
            raise OSError(errno.EISDIR, "a folder")
        if present.names is None and node.names is not None:
            raise OSError(errno.ENOTDIR, "not a folder")
        if present.names:
            raise OSError(errno.ENOTEMPTY, "not empty")

    def _note(self, node: Node, offset: int, data: bytes | None) -> None:
        before = len(node.data)
        _apply(node.data, [(offset, data)])
        node.writes.append((offset, data))
        node.changed_ns = time.time_ns()
        self._used += len(node.data) - before

    def _rename(self, *change: tuple[int, bytes, int | None]) -> None:
        for folder, name, number in change:
            names = self.node(folder).folder
            if (before := names.pop(name, None)) is not None:
                self.nodes[before].links -= 1
            if number is not None:
                names[name] = number
                self.nodes[number].links += 1
            self.node(folder).changed_ns = time.time_ns()
        self._journal.append(change)

    def _sync_names(self, folder: int | None) -> None:
        """Make what was done to names durable, in *folder*, or everywhere."""
        left = []
        for change in self._journal:
            self._write_names(part for part in change if folder in {None, part[0]})
            if rest := tuple(part for part in change if folder not in {None, part[0]}):
                left.append(rest)
        self._journal = left

    def _write_names(self, change: Iterable[tuple[int, bytes, int | None]]) -> None:
        for folder, name, number in change:
            if folder not in self.nodes:
                continue
            if number is None:
                self.nodes[folder].platter_names.pop(name, None)
            else:
                self.nodes[folder].platter_names[name] = number

    def _save_something(self) -> None:
        for node in self.nodes.values():
            _apply(node.platter, _survivors(node.writes, self._random))
        if self.model == "ordered":
            for change in self._journal[: self._random.randint(0, len(self._journal))]:
                self._write_names(change)
            return
        for folder in {part[0] for change in self._journal for part in change}:
            parts = [[part for part in change if part[0] == folder] for change in self._journal]
            touching = [part for part in parts if part]
            for part in touching[: self._random.randint(0, len(touching))]:
                self._write_names(part)

    def _reachable(self, number: int) -> Iterator[int]:
        yield number
        for child in self.nodes[number].platter_names.values():
            yield from self._reachable(child)

    def _count_again(self) -> None:
        self._used = sum(len(node.data) for node in self.nodes.values())
        for node in self.nodes.values():
            node.links = 0
        self.nodes[ROOT].links = 1
        for node in self.nodes.values():
            for child in (node.names or {}).values():
                self.nodes[child].links += 1

    def _forget_if_unused(self, node: Node) -> None:
        """Free the space of a file that has no name and is not open. What the platter knows of it stays there."""
        if node.links or node.opened:
            return
        self._used -= len(node.data)
        node.data = bytearray()
        in_journal = any(part[2] == node.number for change in self._journal for part in change)
        if not in_journal and not any(
            node.number in each.platter_names.values()
            for each in self.nodes.values()
            if each.names is not None
        ):
            del self.nodes[node.number]


def _apply(content: bytearray, writes: Iterable[tuple[int, bytes | None]]) -> None:
    for offset, data in writes:
        if len(content) < offset:
            content.extend(bytes(offset - len(content)))
        if data is None:
            del content[offset:]
        else:
            content[offset : offset + len(data)] = data


def _survivors(writes: list[tuple[int, bytes | None]], random: Random) -> list[tuple[int, bytes | None]]:
    if not writes:
        return []
    if random.random() < 1 / 2:  # In any order: pages are written back as the kernel likes.
        return [write for write in writes if random.random() < 1 / 2]
    whole = random.randint(0, len(writes) - 1)
    offset, data = writes[whole]
    torn = [] if data is None else [(offset, data[: random.randint(0, len(data))])]
    return [*writes[:whole], *torn]
