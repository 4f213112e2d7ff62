"""What the proxy understands of each protocol, on conversations made by hand and cut into chunks anyhow."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.protocols import Direction, KafkaProtocol, NatsProtocol, PostgresProtocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.faults.protocols import Protocol

SENT, RECEIVED = Direction.TO_SERVER, Direction.TO_CLIENT
Turns = list[tuple[Direction, bytes]]


def pg(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def startup(code: int, body: bytes = b"") -> bytes:
    return struct.pack("!II", len(body) + 8, code) + body


def extended(text: bytes, name: bytes = b"", *, parse: bool = True) -> bytes:
    """Parse, Bind, Describe and Execute, as libpq sends them."""
    parsed = pg(b"P", name + b"\0" + text + b"\0\0\0") if parse else b""
    return parsed + pg(b"B", b"\0" + name + b"\0" + bytes(6)) + pg(b"D", b"P\0") + EXECUTE


EXECUTE = pg(b"E", b"\0" + bytes(4))
SYNC, READY = pg(b"S"), pg(b"Z", b"I")
QUERY = pg(b"Q", b"COMMIT\0")
BOUND = pg(b"1") + pg(b"2") + pg(b"n")
ROWS = pg(b"T", b"\0\1x") + pg(b"D", b"C\0\0\0\x0bCOMMIT\0" * 1000)
COMMITTED, ROLLED_BACK = pg(b"C", b"COMMIT\0"), pg(b"C", b"ROLLBACK\0")
ERROR = pg(b"E", b"SERROR\0C23505\0\0")


def done(tag: bytes) -> bytes:
    return pg(b"C", tag + b"\0")


POSTGRES: Turns = [
    (SENT, startup(80877104)),
    (RECEIVED, b"N"),
    (SENT, startup(80877103)),
    (RECEIVED, b"N"),
    (SENT, startup(196608, b"user\0postgres\0\0")),
    (RECEIVED, pg(b"R", bytes(4)) + pg(b"S", b"TimeZone\0UTC\0") + pg(b"K", bytes(8)) + READY),
    # A transaction of simple queries, with an answer in it that looks like the one to COMMIT.
    (SENT, pg(b"Q", b"BEGIN\0") + pg(b"Q", b"SELECT 'COMMIT'\0")),
    (RECEIVED, done(b"BEGIN") + READY + ROWS + done(b"SELECT 1") + READY),
    (SENT, QUERY),
    (RECEIVED, pg(b"N", b"SNOTICE\0\0") + COMMITTED + READY),
    # A pipeline: two transactions and more in one round, and a Query behind it before the first answer.
    (SENT, extended(b"BEGIN") + extended(b"INSERT") + extended(b"commit") + extended(b"SELECT") + extended(b"END", b"s1") + SYNC),
    (SENT, pg(b"Q", b" COMMIT; \0")),
    (RECEIVED, BOUND + done(b"BEGIN") + BOUND + done(b"INSERT 0 1") + BOUND + COMMITTED + BOUND + pg(b"s") + BOUND + COMMITTED + READY),
    (RECEIVED, COMMITTED + READY),
    # A prepared COMMIT; its name and its portal are taken by something else afterwards.
    (SENT, extended(b"", b"s1", parse=False) + SYNC + extended(b"SELECT " + b"x" * 1000, b"s1") + EXECUTE + SYNC),
    (RECEIVED, pg(b"2") + pg(b"n") + COMMITTED + READY + BOUND + done(b"SELECT 1") + done(b"SELECT 1") + READY),
    # An error, and what comes after it is passed over; then a COMMIT that rolls back, and one that fails.
    (SENT, extended(b"INSERT") + extended(b"COMMIT") + SYNC + QUERY + QUERY + QUERY),
    (RECEIVED, pg(b"1") + pg(b"2") + ERROR + READY + ROLLED_BACK + READY + ERROR + READY + COMMITTED + READY),
    # COPY by the extended protocol: the server ignores the Sync that comes before the data.
    (SENT, extended(b"COPY x FROM STDIN") + SYNC),
    (RECEIVED, BOUND + pg(b"G", bytes(3))),
    (SENT, pg(b"d", b"1\n") + pg(b"c") + SYNC),
    (RECEIVED, done(b"COPY 1") + READY),
    (SENT, QUERY),
    (RECEIVED, COMMITTED + READY),
    (SENT, pg(b"X")),
]
BEFORE = [QUERY, EXECUTE, EXECUTE, pg(b"Q", b" COMMIT; \0"), EXECUTE, EXECUTE, QUERY, QUERY, QUERY, QUERY]
AFTER = [COMMITTED] * 7

ACK = b'{"stream":"s", "seq":1}'


def msg(subject: bytes, payload: bytes = ACK, more: bytes = b"") -> bytes:
    return b"MSG %b 1 %b%d\r\n%b\r\n" % (subject, more, len(payload), payload)


NATS: Turns = [
    (RECEIVED, b'INFO {"server_id":"MSG _INBOX.a.1 1 3"}\r\n'),
    (SENT, b'CONNECT {"verbose":false}\r\nPING\r\n'),
    (RECEIVED, b"PONG\r\n"),
    (SENT, b"SUB _INBOX.a.* 1\r\n"),
    # About JetStream itself; without a reply; with one, twice, and a payload that looks like commands.
    (SENT, b"PUB $JS.API.STREAM.INFO.s _INBOX.a.0 0\r\n\r\nPUB quiet 2\r\nhi\r\nPUB x _INBOX.a.1 26\r\nPUB x _INBOX.a.9 0\r\n\r\nPING\r\n"),
    (SENT, b"HPUB x _INBOX.a.2 12 14\r\nNATS/1.0\r\n\r\nhi\r\nHPUB x 12 14\r\nNATS/1.0\r\n\r\nhi\r\n"),
    (RECEIVED, msg(b"_INBOX.a.0") + msg(b"other", b"MSG _INBOX.a.1 1 3\r\nabc\r\n", b"reply ") + b"PING\r\n"),
    (RECEIVED, msg(b"_INBOX.a.2") + msg(b"_INBOX.a.1") + msg(b"_INBOX.a.1", b"again") + b"+OK\r\n"),
    # Nobody is there; and an answer below the inbox.
    (SENT, b"PONG\r\npub x _INBOX.a.3 0\r\n\r\nPUB x _INBOX.a.4 0\r\n\r\n"),
    (RECEIVED, b"HMSG _INBOX.a.3 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n" + msg(b"_INBOX.a.4.x") + b"-ERR 'MSG'\r\n"),
]
ANSWERED = [
    msg(b"_INBOX.a.2"),
    msg(b"_INBOX.a.1"),
    b"HMSG _INBOX.a.3 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n",
    msg(b"_INBOX.a.4.x"),
]


def request(key: int, correlation: int, body: bytes = b"") -> bytes:
    return struct.pack("!IhhI", 8 + len(body), key, 7, correlation) + body


def response(correlation: int, body: bytes = b"") -> bytes:
    return struct.pack("!II", 4 + len(body), correlation) + body


KAFKA: Turns = [
    (SENT, struct.pack("!I", 5) + b"token"),
    (RECEIVED, struct.pack("!I", 0)),
    (SENT, request(18, 1)),
    (RECEIVED, response(1, bytes(300))),
    (SENT, request(0, 2, request(0, 99) * 30) + request(3, 3) + request(0, 0xFFFFFFFE, b"x" * 9_000)),
    (RECEIVED, response(2, b"offset") + response(3, response(0xFFFFFFFE)) + response(0xFFFFFFFE, b"offset")),
    (SENT, request(1, 2)),
    (RECEIVED, response(2, b"records")),
]
PRODUCED = [response(2, b"offset"), response(0xFFFFFFFE, b"offset")]

CONVERSATIONS = [
    pytest.param(PostgresProtocol, POSTGRES, {"before_commit": BEFORE, "after_commit": AFTER}, id="postgres"),
    pytest.param(NatsProtocol, NATS, {"after_pub": ANSWERED}, id="nats"),
    pytest.param(KafkaProtocol, KAFKA, {"after_produce": PRODUCED}, id="kafka"),
]


def watched(protocol: Protocol, turns: Iterable[tuple[Direction, bytes]]) -> tuple[dict[Direction, bytes], dict[str, list[bytes]]]:
    """What came through in each direction, and the frames of each moment."""
    through = dict.fromkeys(Direction, b"")
    found: dict[str, list[bytes]] = {}
    for direction, data in turns:
        for part in protocol.parts(direction, data):
            through[direction] += part.data
            if part.moment:
                found.setdefault(part.moment, []).append(part.data)
    return through, found


def all_of(turns: Turns) -> dict[Direction, bytes]:
    return {direction: b"".join(data for way, data in turns if way is direction) for direction in Direction}


def cut(turns: Turns, sizes: Sequence[int]) -> Turns:
    """The same bytes in the same order, in chunks of these sizes in turn."""
    chunks: Turns = []
    for direction, data in turns:
        at = 0
        while at < len(data):
            size = sizes[len(chunks) % len(sizes)]
            chunks.append((direction, data[at : at + size]))
            at += size
    return chunks


@pytest.mark.parametrize(("protocol", "turns", "moments"), CONVERSATIONS)
def test_moments(protocol: type[Protocol], turns: Turns, moments: dict[str, list[bytes]]) -> None:
    """Each moment is found, no other, and every byte comes through."""
    through, found = watched(protocol(), turns)
    assert found == moments
    assert through == all_of(turns)


@pytest.mark.parametrize(("protocol", "turns", "moments"), CONVERSATIONS)
def test_single_bytes(protocol: type[Protocol], turns: Turns, moments: dict[str, list[bytes]]) -> None:
    assert watched(protocol(), cut(turns, [1])) == (all_of(turns), moments)


@pytest.mark.parametrize(("protocol", "turns", "moments"), CONVERSATIONS)
@given(sizes=st.lists(st.integers(1, 60) | st.integers(1, 5000), min_size=1, max_size=30))
def test_any_chunks(protocol: type[Protocol], turns: Turns, moments: dict[str, list[bytes]], sizes: list[int]) -> None:
    """However the bytes are cut, the same moments are found in the same order, and every byte comes through."""
    assert watched(protocol(), cut(turns, sizes)) == (all_of(turns), moments)


@pytest.mark.parametrize(("protocol", "turns", "moments"), CONVERSATIONS)
def test_what_is_kept_back_is_not_lost(protocol: type[Protocol], turns: Turns, moments: dict[str, list[bytes]]) -> None:
    """A connection that ends anywhere has passed on all that came, when its rest is taken."""
    watch = protocol()
    through = dict.fromkeys(Direction, b"")
    so_far = dict.fromkeys(Direction, b"")
    for direction, data in cut(turns, [7]):
        so_far[direction] += data
        through[direction] += b"".join(part.data for part in watch.parts(direction, data))
        assert so_far[direction] == through[direction] + watch._held[direction]
    for direction in Direction:
        assert through[direction] + watch.rest(direction) == so_far[direction]


@pytest.mark.parametrize("protocol", [PostgresProtocol, NatsProtocol, KafkaProtocol])
def test_tls_passes_unseen(protocol: type[Protocol]) -> None:
    """From the first record of a handshake on, or from Postgres's consent to one, every byte passes at once."""
    record = b"\x16\x03\x01\x02\x00\x01"
    for turns in [(SENT, record), (RECEIVED, record), (SENT, b"Q")], [(SENT, startup(80877103)), (RECEIVED, b"S"), (SENT, record)]:
        if protocol is PostgresProtocol or turns[0][1] is record:
            assert watched(protocol(), turns) == (all_of(turns), {})


def test_what_is_not_nats_is_an_error() -> None:
    with pytest.raises(ValueError, match="no line of NATS"):
        NatsProtocol().parts(SENT, b"x" * 2_000_000)
