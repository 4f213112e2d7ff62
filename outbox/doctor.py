"""What is wrong on the Postgres side and would not mend by itself, each with what to do about it.

Every function here looks for one kind of trouble, changes nothing, and yields nothing if all is well. Thresholds and clocks are given;
what a broker's settings say is `outbox.daemon.brokers`'.
"""

from __future__ import annotations

import secrets
import shlex
import time
from contextlib import aclosing
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, LiteralString, NamedTuple

from psycopg import sql as compose

from bridges.topics import Pattern
from migrations.partitions import database_now, read_days
from outbox import sql, sql_watching
from outbox.status import read_lane_owners

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
    from datetime import datetime

    import psycopg

    from migrations.schedule import Daily, Schedule

_NAMED: Final = 10
"""Of things alike, the worst are named, and the rest counted."""

_MANY_TRANSACTIONS: Final = 1_000_000
"""How far behind a standby or a slot may be, which say nothing of their time."""

_MESSAGES_OPTIONS: Final = {
    "autovacuum_vacuum_scale_factor": ("0", 0.0),
    "autovacuum_vacuum_threshold": ("10000", 10000.0),
    "vacuum_truncate": ("off", 0.0),
}
"""The storage of the table `messages`, as the migration sets it, and in numbers."""


class Finding(NamedTuple):
    """Something wrong.

    Attributes:
        what: where it is.
        problem: what is wrong.
        advice: what to do.
        is_note: nothing is wrong as far as can be seen, and that may not be far enough.
    """

    what: str
    problem: str
    advice: str
    is_note: bool = False


async def find_lost_rows(connection: psycopg.AsyncConnection[Any], *, schema: str = "outbox") -> AsyncIterator[Finding]:
    """Find rows that no claim would ever take, however long it is waited."""
    if lost := await _rows(connection, sql.bind(sql_watching.FIND_LOST_QUEUES, schema)):
        yield Finding(
            "held messages",
            f"{_count(sum(row[1] for row in lost), 'message')} in queues that no row of holds leads to: {_some(row[0] for row in lost)}",
            f"give each queue its row again: {_one_line(sql.bind(sql_watching.MEND_LOST_QUEUES, schema))}",
        )
    lanes = dict(await _rows(connection, sql.bind(sql_watching.FIND_LOST_LANES, schema)))
    if missing := [lane for lane in lanes if 0 <= lane < 64]:
        waiting = sum(lanes[lane] for lane in missing)
        yield Finding(
            "lanes",
            f"{_count(len(missing), 'row')} of lanes missing, which no claim can own, with {_count(waiting, 'message')}: {_some(missing)}",
            f"put them back: {sql.bind(sql_watching.MEND_LANES, schema)}",
        )
    if unknown := [lane for lane in lanes if not 0 <= lane < 64]:
        waiting = sum(lanes[lane] for lane in unknown)
        yield Finding(
            "lanes",
            f"{_count(waiting, 'message')} in lanes that do not exist: {_some(unknown)}; somebody wrote to deferred, held or holds by hand",
            f"put them where their keys are: {_one_line(sql.bind(sql_watching.MEND_LANES_OF_ROWS, schema))}",
        )
    if stranded := await _rows(connection, sql.bind(sql_watching.FIND_STRANDED_KEYS, schema)):
        waiting = sum(row[1] for row in stranded)
        keys = _some(_quoted(row[0].removeprefix("key:")) for row in stranded)
        yield Finding(
            "keys",
            f"{_count(len(stranded), 'key')} {'waits' if len(stranded) == 1 else 'wait'} for a dead letter that is gone,"
            f" with {_count(waiting, 'message')}: {keys}",
            f"let go of them: {_one_line(sql.bind(sql_watching.MEND_STRANDED_KEYS, schema))}",
        )
    ((below,),) = await _rows(connection, sql.bind(sql_watching.FIND_BELOW_FLOORS, schema))
    if below:
        yield Finding(
            "messages",
            f"{_count(below, 'message')} at a position below 1, where no claim looks; somebody wrote the positions by hand",
            f"let them draw positions of their own: {_one_line(sql.bind(sql_watching.MEND_POSITIONS, schema))}",
        )


async def find_keys_for_operator(connection: psycopg.AsyncConnection[Any], *, schema: str = "outbox") -> AsyncIterator[Finding]:
    """Find the keys that wait until an operator decides about their dead letter."""
    found = await _rows(connection, sql.bind(sql_watching.FIND_KEYS_FOR_OPERATOR, schema), (_NAMED,))
    for hold, message_id, error, messages, _ in found:
        key = _quoted(hold.removeprefix("key:"))
        yield Finding(
            f"key {key}",
            f"it waits until an operator decides about its dead letter{f' ({error})' if error else ''}, with {_count(messages, 'message')}",
            f"`outboxd dead requeue --id {message_id}` sends it again, `outboxd dead drop --id {message_id}` goes on without it",
        )
    if found and (more := found[0][4] - len(found)):
        yield Finding(
            "keys",
            f"until an operator decides about a dead letter, there wait {_count(more, 'more key')}",
            f"""list them: SELECT hold, error FROM "{schema}".holds WHERE due_at IS NULL AND destination IS NULL;""",
        )


async def find_unconfigured(
    connection: psycopg.AsyncConnection[Any], *, sinks: Collection[str], routes: Sequence[str], schema: str = "outbox"
) -> AsyncIterator[Finding]:
    """Find messages that this configuration has no place for: of topics without a route, and in the queue of a sink that is gone."""
    patterns = [Pattern(route) for route in routes]
    topics = await _rows(connection, sql.bind(sql_watching.COUNT_BY_TOPIC, schema))
    if lost := [row for row in topics if not any(pattern.matches(row[0]) for pattern in patterns)]:
        yield Finding(
            "routes",
            f"{_count(sum(row[1] for row in lost), 'message')} without a route, to be dead letters: {_some(row[0] for row in lost)}",
            "add [[routes]] for these topics; what is dead by then goes out with `outboxd dead requeue`",
        )
    for _, sink, _, messages, _, error in await _rows(connection, sql.bind(sql_watching.STATUS_OF_HOLDS, schema)):
        if sink is not None and sink not in sinks:
            yield Finding(
                f"sink {sink}",
                f"it is not one of [sinks], and its queue holds {_count(messages, 'message')} ({error or 'it was away'})",
                f"give [sinks] {sink} again; or point the routes of its topics to another sink, to which the next pump takes them",
            )


async def find_late_claims(
    connection: psycopg.AsyncConnection[Any], *, claim_timeout: float, schema: str = "outbox"
) -> AsyncIterator[Finding]:
    """Find transactions that have owned lanes for longer than any claim may: the keys of these lanes wait."""
    for owner in await read_lane_owners(connection, schema=schema):
        if owner.seconds is not None and owner.seconds > claim_timeout:
            who = f"process {owner.pid}" if owner.pid else "a prepared transaction"
            from_ = f" from {owner.client}" if owner.client else ""
            end = f"SELECT pg_terminate_backend({owner.pid});" if owner.pid else f"ROLLBACK PREPARED {_literal(owner.application)};"
            yield Finding(
                f"claim of {who}",
                f"{owner.application or 'somebody'}{from_} owns {_count(owner.lanes, 'lane')} for {_seconds(owner.seconds)}"
                f" ({owner.state or 'state unknown'}); no claim takes longer than {_seconds(claim_timeout)}",
                f"end it, which gives all back and loses nothing: {end}",
            )
    ((hidden,),) = await _rows(connection, sql_watching.COUNT_HIDDEN_SESSIONS)
    if hidden:
        role = connection.info.user
        yield Finding(
            "rights",
            f"the role {role} may not see since when {_count(hidden, 'session')} of other roles are open: late claims and old"
            " transactions among them are not found",
            f'GRANT pg_read_all_stats TO "{role}"; or run the doctor as a role that has it',
            is_note=True,
        )


async def find_pins(
    connection: psycopg.AsyncConnection[Any], *, older_than: float = 300.0, schema: str = "outbox"
) -> AsyncIterator[Finding]:
    """Find what keeps dead rows from being vacuumed, and claims slow: old transactions, slots that nobody reads, standbys far behind."""
    claims = {owner.pid for owner in await read_lane_owners(connection, schema=schema)}  # `find_late_claims` tells of these
    found = [
        _pin(*row, older_than=older_than)
        for row in await _rows(connection, sql_watching.FIND_PINS)
        if row[1] is None or row[1] not in claims
    ]
    for finding in [finding for finding in found if finding][:_NAMED]:
        yield finding


def _pin(
    kind: str, pid: int | None, name: str, detail: str, seconds: float | None, transactions: int, writes: bool, *, older_than: float
) -> Finding | None:
    """Judge one holder of the horizon."""
    keeps = "nothing that died since is vacuumed"
    behind = f"{transactions:,} transactions ago"
    match kind:
        case "session" if seconds is not None and seconds > older_than:
            floor = "; it has written, and so it also holds the floor back" if writes else ""
            return Finding(
                f"process {pid}",
                f"{name or 'an application without a name'} has a transaction open for {_seconds(seconds)} ({detail}): {keeps}{floor}",
                f"end it in the application, or with SELECT pg_terminate_backend({pid});"
                " idle_in_transaction_session_timeout keeps it from happening again",
            )
        case "prepared" if seconds is not None and seconds > older_than:
            return Finding(
                f"prepared transaction {name!r}",
                f"it is prepared in database {detail} for {_seconds(seconds)}: {keeps}, and it holds the floor back",
                f"finish it, in that database: COMMIT PREPARED or ROLLBACK PREPARED {_literal(name)};",
            )
        case "slot" if detail == "inactive" or transactions > _MANY_TRANSACTIONS:
            return Finding(
                f"replication slot {name!r}",
                f"it is {detail} and needs what was there {behind}: {keeps}",
                f"bring its standby back, or give the slot up: SELECT pg_drop_replication_slot('{name}');",
            )
        case "standby" if transactions > _MANY_TRANSACTIONS:
            return Finding(
                f"standby {name or pid}",
                f"a query there still reads what was there {behind}, and hot_standby_feedback tells us: {keeps}",
                "end that query on the standby, or switch hot_standby_feedback off there",
            )
    return None


async def find_vacuum_trouble(connection: psycopg.AsyncConnection[Any], *, schema: str = "outbox") -> AsyncIterator[Finding]:
    """Find settings under which the outbox's tables are not vacuumed in time: rows live there for milliseconds, and die."""
    ((autovacuum, counts),) = await _rows(connection, sql_watching.SEE_AUTOVACUUM)
    if not autovacuum:
        yield Finding("autovacuum", "it is off for the whole server", "ALTER SYSTEM SET autovacuum = on; SELECT pg_reload_conf();")
    if not counts:
        yield Finding(
            "autovacuum",
            "track_counts is off, and without the counts autovacuum does not know what to do",
            "ALTER SYSTEM SET track_counts = on; SELECT pg_reload_conf(); and ALTER DATABASE or ROLE ... RESET track_counts",
        )
    tables: dict[str, dict[str, tuple[str, float | None]]] = {"messages": {}}
    for table, option, *value in await _rows(connection, sql.bind(sql_watching.SEE_TABLE_OPTIONS, schema)):
        tables.setdefault(table, {})[option] = (value[0], value[1])
    for table, options in tables.items():
        for prefix in ("", "toast."):
            option = f"{prefix}autovacuum_enabled"
            if options.get(option, ("on", 1.0))[1] == 0:
                yield Finding(
                    f"table {schema}.{table}", f"{option} is off: it grows for ever", f'ALTER TABLE "{schema}".{table} RESET ({option});'
                )
    given = {name: tables["messages"].get(name, ("not set", None)) for name in _MESSAGES_OPTIONS}
    if changed := [name for name, (_, number) in _MESSAGES_OPTIONS.items() if given[name][1] != number]:
        wanted = ", ".join(f"{name} = {_MESSAGES_OPTIONS[name][0]}" for name in changed)
        found = ", ".join(f"{name} is {given[name][0]}" for name in changed)
        yield Finding(f"table {schema}.messages", f"{found}, unlike in the migration", f'ALTER TABLE "{schema}".messages SET ({wanted});')


async def find_pooler(connect: Callable[[], Awaitable[psycopg.AsyncConnection[Any]]], *, within: float = 3.0) -> AsyncIterator[Finding]:
    """Find a transaction pooler in the way of LISTEN.

    A pooler in session mode does no harm, though it too may tell the client of a process that is not the server's.

    Args:
        connect: makes an autocommit connection, as the pump does.
        within: seconds for a notification to arrive.
    """
    async with await connect() as listening, await connect() as ringing:
        processes = set()
        token = secrets.token_hex(8)
        await listening.execute(sql_watching.LISTEN_FOR_DOCTOR)
        for _ in range(3):  # each statement is a transaction, and a pooler may well take the same process for one after the other
            ((process,),) = await _rows(listening, sql_watching.SEE_PROCESS)
            processes.add(process)
            await ringing.execute(sql_watching.SEE_PROCESS)
        await ringing.execute(sql_watching.NOTIFY_DOCTOR, (token,))
        heard = False
        async with aclosing(listening.notifies(timeout=within)) as notes:
            async for note in notes:
                if heard := note.payload == token:
                    break
        await listening.execute(sql_watching.UNLISTEN_FOR_DOCTOR)
        told = listening.info.backend_pid
    if heard and len(processes) == 1:
        return
    evidence = [] if heard else [f"a NOTIFY from another connection did not arrive within {within:g} s"]
    if len(processes) > 1:
        evidence.append(f"the server's process changed from one transaction to the next ({_some(sorted(processes))})")
    if told not in processes:
        evidence.append(f"the connection says that it is to process {told}, and is not")
    yield Finding(
        "doorbell",
        f"a transaction pooler stands between us and the server: {'; '.join(evidence)}",
        "give [postgres] a dsn that leads to the server itself, or set doorbell = false there: messages are then noticed by polling",
    )


async def find_clock_skew(
    connection: psycopg.AsyncConnection[Any], *, clock: Callable[[], float] = time.time, more_than: float = 1.0
) -> AsyncIterator[Finding]:
    """Find a difference between the database's clock and ours that the round trip of the question does not explain.

    Args:
        connection: to ask through.
        clock: seconds since the epoch, here.
        more_than: seconds that do not matter.
    """
    before = clock()
    ((there,),) = await _rows(connection, sql_watching.SEE_CLOCK)
    after = clock()
    skew = there - min(max(there, before), after)
    if abs(skew) > more_than:
        yield Finding(
            "clocks",
            f"the database's clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} this machine's",
            "run an NTP client on both: applications write deliver_at and expires_at by their clock, and the database judges by its own",
        )


async def find_late_days(
    connection: psycopg.AsyncConnection[Any], daily: Daily, schedule: Callable[[datetime], Schedule], *, schema: str
) -> AsyncIterator[Finding]:
    """Find partitions that nobody has made or dropped in time, and rows that should have gone from the default one.

    Args:
        connection: in autocommit mode.
        daily: the table.
        schedule: returns what is to be at a time.
        schema: it is in.
    """
    advice = (
        "the daemons do it, and warn if they cannot: if locks are in the way, run `outboxd tidy`, which is more patient;"
        " if their role may not, run it every day as the owner of the schema"
    )
    now = await database_now(connection)
    _, days = await read_days(connection, daily, schema=schema)
    for name, why in schedule(now).late(daily, days).items():
        yield Finding(f"table {schema}.{name}", why, advice)
    default = compose.Identifier(schema, f"{daily.table}_default")
    conditions = compose.SQL(" OR ").join(compose.SQL("({})").format(each) for each in schedule(now - timedelta(days=1)).swept)
    if conditions.as_string():
        cursor = await connection.execute(compose.SQL("SELECT count(*) FROM ONLY {} WHERE {}").format(default, conditions))
        ((over,),) = await cursor.fetchall()
        if over:
            yield Finding(f"table {schema}.{daily.table}_default", f"{_count(over, 'row')} not deleted, though over for a day", advice)


async def find_too_old(
    connection: psycopg.AsyncConnection[Any], keep: timedelta, is_consumed: Callable[[str], bool], *, schema: str = "outbox"
) -> AsyncIterator[Finding]:
    """Find deferred messages and dead letters that consumers would set aside for their age.

    Args:
        connection: to ask through.
        keep: how long the consumers' processed ids are kept.
        is_consumed: whether the messages of a topic go to such a consumer.
        schema: of the outbox track.
    """
    rows = await _rows(connection, sql.bind(sql_watching.COUNT_TOO_OLD, schema), {"keep": keep})
    for table, when in (("deferred", "when it is due"), ("dead", "by now")):
        found = [(topic, number) for there, topic, number in rows if there == table and is_consumed(topic)]
        if found:
            yield Finding(
                f"{table} messages",
                f"{_count(sum(number for _, number in found), 'message')} {when} older than processed ids are kept ([dedupe] keep), so that"
                f" consumers set them aside: {_some(topic for topic, _ in found)}",
                "raise keep before it has passed for them; what is set aside is handled after `outboxd dead requeue --consumer`",
            )


async def _rows(
    connection: psycopg.AsyncConnection[Any], statement: LiteralString, parameters: Sequence[Any] | dict[str, Any] = ()
) -> list[tuple[Any, ...]]:
    # Without parameters nothing is bound, and several columns may hold a per cent sign.
    return await (await connection.execute(statement, parameters or None)).fetchall()


def _some(names: Any) -> str:
    """Name the first of them, and count the rest."""
    listed = list(map(str, names))
    return ", ".join(listed[:_NAMED]) + (f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else "")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _quoted(text: str) -> str:
    """Return text for a shell, in one line whatever is in it."""
    if text.isprintable():
        return shlex.quote(text)
    escaped = text.replace("\\", r"\\").replace("'", r"\'")
    return "$'" + "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in escaped) + "'"


def _literal(text: str | None) -> str:
    return "'" + (text or "").replace("'", "''") + "'"


def _one_line(statement: str) -> str:
    return " ".join(statement.split())
