"""A stream's settings: as they should be, and what is wrong with them, in plain words."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import nats.errors
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError

from bridges.topics import covers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bridges.jetstream.connection import JetStream


async def make_stream(connection: JetStream, stream: str, subjects: Sequence[str], *, allow_atomic: bool = False) -> None:
    """Make a stream with the settings that the promises assume: stored in files, and refusing rather than discarding at a limit.

    ``allow_atomic`` lets a hot key move at the speed of a batch; it needs nats-server 2.12.
    """
    config = StreamConfig(
        name=stream,
        subjects=list(subjects),
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,
        allow_atomic=allow_atomic or None,  # an older server need not hear of it
    )
    await (await connection.client()).jsm().add_stream(config)


async def delete_stream(connection: JetStream, stream: str) -> None:
    """Delete a stream and all that is in it."""
    await (await connection.client()).jsm().delete_stream(stream)


async def stored(connection: JetStream, stream: str) -> int:
    """Return how many messages a stream holds."""
    return (await (await connection.client()).jsm().stream_info(stream)).state.messages


async def problems(connection: JetStream, stream: str, subjects: Sequence[str]) -> list[str]:
    """Return what keeps the stream from keeping what it acknowledges; nothing if all is well. Does not raise for trouble.

    Args:
        connection: where.
        stream: its name.
        subjects: what will be published to it, as patterns.
    """
    config = await _config(connection, stream)
    if isinstance(config, str):
        return [config]
    found = [
        f"stream {stream!r} does not take subject {subject!r}: its subjects are {', '.join(config.subjects or [])}"
        for subject in subjects
        if not any(covers(taken, subject) for taken in config.subjects or [])
    ]
    found += [f"{problem}; {advice}" for problem, advice in _unkept(stream, config)]
    if 0 < (config.duplicate_window or 0) < 60:
        found.append(f"stream {stream!r} recognises duplicates for {config.duplicate_window:g} s only; 120 s is the default")
    return found


async def risks(connection: JetStream, stream: str, *, published: bool, consumed: bool, keep: timedelta | None) -> list[tuple[str, str]]:
    """Return how the stream's settings could lose a message or repeat an effect, each with what to do. Does not raise for trouble.

    Args:
        connection: where.
        stream: its name.
        published: whether anything is published to it.
        consumed: whether anything is consumed from it.
        keep: how long its consumers remember what they have processed; None for ever.
    """
    config = await _config(connection, stream)
    if isinstance(config, str):
        return [(config, "`outboxd check` says more; the outbox keeps everything until it is mended")]
    found = list(_unkept(stream, config)) if published else []
    longest = timedelta(seconds=config.max_age) if config.max_age else None
    if consumed and keep is not None and (longest is None or longest > keep):
        problem = f"stream {stream!r} can deliver a message again for {longest or 'ever'}, and its id is forgotten after {keep}"
        longer = "raise keep in [dedupe] above that" if longest else 'set keep = "forever" in [dedupe]'
        shorter = f"`nats stream edit {stream} --max-age={keep.total_seconds() / 2:.0f}s`, or less"
        found.append((problem, f"{longer}; there is also {shorter}, which deletes what is older from the stream, read or not"))
    return found


def _unkept(stream: str, config: StreamConfig) -> Iterator[tuple[str, str]]:
    """Yield what keeps the stream from keeping what it acknowledges, or from acknowledging, and what to do."""
    if config.storage != StorageType.FILE:
        yield f"stream {stream!r} is stored in memory: what it acknowledged is gone when its server restarts", "use file storage"
    if config.retention == RetentionPolicy.INTEREST:
        yield f"stream {stream!r} has interest retention: it acknowledges and keeps nothing while it has no consumer", "use limits"
    if ((config.max_msgs or 0) > 0 or (config.max_bytes or 0) > 0) and config.discard != DiscardPolicy.NEW:
        yield f"stream {stream!r} discards its oldest messages at its limit, read or not", "with discard=new the outbox keeps the rest"
    if config.max_msgs_per_subject > 0 and not config.discard_new_per_subject:
        yield (
            f"stream {stream!r} keeps the last {config.max_msgs_per_subject} messages of a subject and discards older ones, read or not",
            "lift max_msgs_per_subject; or with discard=new and discard_new_per_subject the outbox keeps the rest",
        )
    if config.no_ack:
        yield f"stream {stream!r} does not acknowledge: nothing ever counts as published", "make it without no_ack"
    if config.mirror is not None:
        yield f"stream {stream!r} is a mirror: it takes what another stream has, and nothing else", "publish to the stream that it mirrors"


async def _config(connection: JetStream, stream: str) -> StreamConfig | str:
    """Return the stream's configuration, or why it cannot be had."""
    try:
        client = await connection.client()
        return (await client.jsm().stream_info(stream)).config
    except NotFoundError:
        return f"stream {stream!r} does not exist: make it, for example with `nats stream add {stream}`"
    except (nats.errors.Error, APIError, OSError, TimeoutError) as problem:
        return f"cannot be asked about stream {stream!r}: {str(problem) or type(problem).__name__}"
