"""Sending commands through redis-py: one, or many in one round trip to each server."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any, TypeAlias

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisClusterException, RedisError, ResponseError

from multidb.engines._redis_connections import pack
from multidb.engines._redis_errors import DRIVER_ERRORS, UnsentError, is_dropped, translate, translated
from multidb.errors import BackendError, MultiDBError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import RedisCluster


class Script:
    """
    A Lua script for the server, which is sent in full only to a server that does not know it yet.

    *weighty* says that calls of it may be merged: it takes the keys and arguments of any number of calls one after the
    other, and returns a list with a reply for each. It is the place, in a command, of what may be long.
    """

    def __init__(self, source: str, *, weighty: int = 0) -> None:
        """Take the *source*."""
        self.source = source.encode()
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()
        self.call = ("EVALSHA", self.sha)
        self.weighty = weighty

    def own(self, reply: Any) -> Any:
        """Return the reply of a single call."""
        return reply[0] if self.weighty and isinstance(reply, list) else reply


Command: TypeAlias = tuple[Any, ...]
"""`("GET", key)`: a name, a key, the rest. `(script, 2, key, key, …)`: a Script, a count, keys, the rest."""


async def run_one(client: Any, command: Command, *, writes: bool) -> Any:
    """Run one command; return its reply."""
    script, *arguments = command
    if not isinstance(script, Script):
        return await _execute(client, *command, writes=writes)
    try:
        reply = await _execute(client, "EVALSHA", script.sha, *arguments, writes=writes)
    except NoScriptError:
        reply = await _execute(client, "EVAL", script.source, *arguments, writes=writes)
    reply = script.own(reply)
    if isinstance(reply, RedisError):
        raise reply
    return reply


async def _execute(client: Any, *words: Any, writes: bool) -> Any:
    try:
        return await client.execute_command(*words)
    except RedisConnectionError as exc:
        if writes or not is_dropped(exc):
            raise
    return await client.execute_command(*words)


async def translated_one(client: Any, command: Command, *, writes: bool) -> Any:
    """Run one command; return its reply, or raise an error of multidb."""
    with translated(writes=writes):
        return await run_one(client, command, writes=writes)


def for_lane(command: Command) -> tuple[bytes | Command, int]:
    """Return a command as a lane takes it, and its size, roughly."""
    script = command[0]
    if type(script) is not Script:
        packed = pack(command)
    elif script.weighty:
        return command, len(command[script.weighty])
    else:
        packed = pack(script.call + command[1:])
    return packed, len(packed)


def merged(commands: Sequence[Command]) -> bytes:
    """Return what goes over the wire for calls of one script that takes them all at once."""
    script = commands[0][0]
    keys: list[Any] = []
    arguments: list[Any] = []
    for command in commands:
        end = 2 + command[1]
        keys += command[2:end]
        arguments += command[end:]
    return pack((*script.call, len(keys), *keys, *arguments))


def for_lanes(commands: Sequence[Command], lanes: Sequence[object]) -> tuple[list[bytes | Command], int]:
    """
    Return several commands as their lanes take them, and their size, roughly.

    On each lane a script goes in full, once: repeating what came back as unknown would change the order. Calls that
    are merged are all of a script that is known, or that is not.
    """
    script = commands[0][0]
    if isinstance(script, Script) and script.weighty and all(command[0] is script for command in commands):
        return list(commands), sum(len(command[script.weighty]) for command in commands)
    known: set[tuple[object, Script]] = set()
    packed: list[bytes] = []
    for command, lane in zip(commands, lanes, strict=True):
        script = command[0]
        if not isinstance(script, Script):
            packed.append(pack(command))
        elif (lane, script) in known:
            packed.append(pack(script.call + command[1:]))
        else:
            packed.append(pack(("EVAL", script.source, *command[1:])))
            known.add((lane, script))
    return list(packed), sum(map(len, packed))


def own_replies(commands: Sequence[Command], replies: Sequence[Any]) -> list[Any]:
    """Return the replies of single calls."""
    scripts = [command[0] for command in commands]
    return [
        script.own(reply) if isinstance(script, Script) else reply
        for script, reply in zip(scripts, replies, strict=True)
    ]


def key_of(command: Command) -> Any:
    """Return the first key that a command names; "" when it names none."""
    at = 2 if isinstance(command[0], Script) else 1
    return command[at] if len(command) > at else ""


def tag_of(command: Command) -> str:
    """Return whose key a command names: the same for all keys with the same hash tag."""
    key = key_of(command)
    return (key.decode(errors="replace") if isinstance(key, bytes) else str(key)).partition("}")[0]


async def run_many(client: Any, commands: Sequence[Command], *, writes: bool, spread: bool) -> list[Any]:
    """
    Run commands in one round trip to each server, in order on each server; return the replies.

    *spread*: the client is one of a cluster. What failed is raised, as an error of multidb.
    """
    if spread:
        replies = await _run_on_nodes(client, commands, writes=writes)
    else:
        replies = await _pipeline(client, commands, writes=writes)
    _raise_failure(replies, writes=writes)
    return replies


async def _run_on_nodes(client: RedisCluster, commands: Sequence[Command], *, writes: bool) -> list[Any]:
    groups = await _by_node(client, commands)
    answers = await asyncio.gather(
        *(_pipeline(client, [commands[i] for i in group], writes=writes) for group in groups)
    )
    replies: list[Any] = [None] * len(commands)
    for group, answer in zip(groups, answers, strict=True):
        for i, reply in zip(group, answer, strict=True):
            replies[i] = reply
    return replies


async def _by_node(client: RedisCluster, commands: Sequence[Command]) -> list[Sequence[int]]:
    """Return the positions of the commands of each node."""
    groups: dict[str, list[int]] = {}
    with translated(writes=False):
        await client.initialize()
        for i, command in enumerate(commands):
            key = command[2] if isinstance(command[0], Script) else command[1]
            node = client.nodes_manager.get_node_from_slot(client.keyslot(key))
            groups.setdefault(node.name, []).append(i)
    return list(groups.values())


async def _pipeline(client: Any, commands: Sequence[Command], *, writes: bool) -> list[Any]:
    """Run *commands* on one server; return the reply of each, or its exception."""
    replies = await _send(client, commands)
    if not writes and any(isinstance(reply, Exception) and is_dropped(reply) for reply in replies):
        replies = await _send(client, commands)
    for i, reply in enumerate(replies):
        if isinstance(reply, NoScriptError):  # Its slot moved, to a node that has not seen the script.
            try:
                replies[i] = await run_one(client, commands[i], writes=writes)
            except DRIVER_ERRORS as exc:
                replies[i] = exc
    return own_replies(commands, replies)


async def _send(client: Any, commands: Sequence[Command]) -> list[Any]:
    pipeline = client.pipeline(transaction=False)
    sent: set[Script] = set()
    for script, *arguments in commands:
        if not isinstance(script, Script):
            pipeline.execute_command(script, *arguments)
        elif script in sent:
            pipeline.execute_command("EVALSHA", script.sha, *arguments)
        else:
            # In full, once: repeating what came back as unknown would carry commands out in another order.
            pipeline.execute_command("EVAL", script.source, *arguments)
            sent.add(script)
    try:
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
    except DRIVER_ERRORS as exc:
        return [exc] * len(commands)
    return replies


def raise_failure(replies: Sequence[Any], *, writes: bool) -> None:
    """Raise the first error among *replies*; ambiguous if one of them is, or something else was carried out."""
    failures = [reply for reply in replies if isinstance(reply, MultiDBError)]
    if not failures:
        return
    error = failures[0]
    if isinstance(error, BackendError):
        unclear = any(isinstance(one, BackendError) and one.ambiguous for one in failures)
        error.ambiguous = writes and (unclear or len(failures) < len(replies))
    raise error


def _raise_failure(replies: Sequence[Any], *, writes: bool) -> None:
    failures = [reply for reply in replies if isinstance(reply, Exception)]
    if not failures:
        return
    error = translate(failures[0], writes=writes)
    if isinstance(error, BackendError):
        # A server that ends the connection may have carried out what came before the command that it refused.
        definite = all(
            isinstance(one, UnsentError | ResponseError | RedisClusterException) for one in failures
        )
        error.ambiguous = writes and not (definite and len(failures) == len(replies))
    raise error from failures[0]
