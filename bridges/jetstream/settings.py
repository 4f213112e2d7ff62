"""A stream's settings: as they should be, and what is wrong with them, in plain words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import nats.errors
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError

from bridges.topics import covers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridges.jetstream.connection import JetStream


async def make_stream(connection: JetStream, stream: str, subjects: Sequence[str]) -> None:
    """Make a stream with the settings that the promises assume: stored in files, and refusing rather than discarding at a limit."""
    config = StreamConfig(name=stream, subjects=list(subjects), storage=StorageType.FILE, discard=DiscardPolicy.NEW)
    await (await connection.client()).jsm().add_stream(config)


async def delete_stream(connection: JetStream, stream: str) -> None:
    """Delete a stream and all that is in it."""
    await (await connection.client()).jsm().delete_stream(stream)


async def problems(connection: JetStream, stream: str, subjects: Sequence[str]) -> list[str]:
    """Return what keeps the stream from keeping what it acknowledges; nothing if all is well. Does not raise for trouble.

    Args:
        connection: where.
        stream: its name.
        subjects: what will be published to it, as patterns.
    """
    try:
        client = await connection.client()
        config = (await client.jsm().stream_info(stream)).config
    except NotFoundError:
        return [f"stream {stream!r} does not exist: make it, for example with `nats stream add {stream}`"]
    except (nats.errors.Error, APIError, OSError, TimeoutError) as problem:
        return [f"cannot be asked about stream {stream!r}: {str(problem) or type(problem).__name__}"]
    found = [
        f"stream {stream!r} does not take subject {subject!r}: its subjects are {', '.join(config.subjects or [])}"
        for subject in subjects
        if not any(covers(taken, subject) for taken in config.subjects or [])
    ]
    if config.storage != StorageType.FILE:
        found.append(f"stream {stream!r} is stored in memory: what it acknowledged is gone when its server restarts; use file storage")
    if config.retention == RetentionPolicy.INTEREST:
        found.append(f"stream {stream!r} has interest retention: it acknowledges and keeps nothing while it has no consumer; use limits")
    if ((config.max_msgs or 0) > 0 or (config.max_bytes or 0) > 0) and config.discard != DiscardPolicy.NEW:
        found.append(
            f"stream {stream!r} discards its oldest messages at its limit, read or not; with discard=new the outbox keeps the rest"
        )
    if 0 < (config.duplicate_window or 0) < 60:
        found.append(f"stream {stream!r} recognises duplicates for {config.duplicate_window:g} s only; 120 s is the default")
    return found
