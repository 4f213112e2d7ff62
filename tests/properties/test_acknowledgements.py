"""Acknowledgements reach who waits for them, however the server's bytes are cut, and whatever comes between them."""

from __future__ import annotations

import asyncio
import re

from hypothesis import given
from hypothesis import strategies as st

from bridges.jetstream.client import AckingClient
from tests.unit.messages import turn

MINE, OTHERS = 1, 2
FIRST, COUNT = 3, 12
"""The numbers of the window that is looked at; another one has those before, and nobody those after."""

ALIKE = b'MSG _INBOX.a.5 1 11\r\n{"seq":"no"}\r\n'
"""What looks like an acknowledgement, in the payload of something else."""

numbers = st.integers(0, FIRST + COUNT + 2)
payloads = st.sampled_from([b"", b"x", b"\r\n", ALIKE, ALIKE * 2 + b"MSG _INBOX.a.", b"MSG _INBOX.a.5 1 3\r\n{", b"-ERR 'no'\r\n"])


def acknowledgement(number: int) -> bytes:
    body = b'{"stream":"s", "seq":%d}' % (number + 100)
    return b"MSG _INBOX.a.%d %d %d\r\n%b\r\n" % (number, MINE, len(body), body)


def nobody(number: int) -> bytes:
    return b"HMSG _INBOX.a.%d %d 16 16\r\nNATS/1.0 503\r\n\r\n\r\n" % (number, MINE)


def other(payload: bytes) -> bytes:
    return b"MSG elsewhere %d %d\r\n%b\r\n" % (OTHERS, len(payload), payload)


pieces = st.one_of(
    numbers.map(acknowledgement),
    numbers.map(acknowledgement),
    numbers.map(nobody),
    payloads.map(other),
    st.sampled_from([b"+OK\r\n", b"PONG\r\n", b"MSG _INBOX.a.x 1 2\r\n{}\r\n"]),
)


class Client(AckingClient):
    """A client that is connected to nothing, and keeps what is no acknowledgement."""

    def __init__(self) -> None:
        super().__init__(must_encrypt=False)
        self.others: list[bytes] = []
        self.take_acknowledgements("_INBOX.a", MINE)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        if sid == OTHERS:
            self.others.append(bytes(data))
        else:
            await super()._process_msg(sid, subject, reply, data, headers)


def told(sent: list[bytes], first: int, count: int) -> dict[int, bytes]:
    """What the window of these numbers is told: the first body for each, which is empty for a status without one."""
    found: dict[int, bytes] = {}
    for piece in sent:
        match = re.fullmatch(rb"H?MSG _INBOX\.a\.(\d+) .*?\r\n(?:NATS/1.0 503\r\n\r\n)?(.*)\r\n", piece)
        if match and first <= int(match[1]) < first + count:
            found.setdefault(int(match[1]) - first, match[2])
    return found


@given(st.lists(pieces, max_size=30), st.lists(st.integers(1, 200), max_size=12))
def test_every_acknowledgement_comes_to_its_window_and_everything_else_to_the_client(sent: list[bytes], cuts: list[int]) -> None:
    async def run() -> None:
        client = Client()
        before, window = client.window(FIRST), client.window(COUNT)
        data = b"".join(sent)
        at = 0
        for cut in [*cuts, len(data)]:
            await client._ps.parse(data[at : at + cut])
            at += cut
        assert window.received == told(sent, FIRST, COUNT)
        assert before.received == told(sent, 0, FIRST)
        assert client.others == [piece[piece.index(b"\r\n") + 2 : -2] for piece in sent if piece.startswith(b"MSG elsewhere")]
        client.forget(window)
        more = [acknowledgement(FIRST + 1), acknowledgement(FIRST - 1)]
        await client._ps.parse(b"".join(more))
        assert window.received == told(sent, FIRST, COUNT), "nobody waits there any more"
        assert before.received == told([*sent, *more], 0, FIRST)

    asyncio.run(run())


@given(st.permutations(range(FIRST + COUNT + 2)), st.integers(0, COUNT), st.integers(1, 400))
def test_who_waits_goes_on_when_the_last_is_there_and_not_before(order: list[int], sent: int, size: int) -> None:
    """There are answers to what was never sent, too: they count for nothing but that who waits may go on early."""

    async def run() -> None:
        client = Client()
        client._status = Client.CONNECTED
        client.window(FIRST)
        window = client.window(COUNT)
        window._sent = sent
        waiting = asyncio.create_task(window.all_acknowledged(asyncio.get_running_loop().time() + 20))
        data = b"".join(map(acknowledgement, order))
        for at in range(0, len(data), size):
            await client._ps.parse(data[at : at + size])
            for _ in range(3):  # who waits is woken, looks, and ends
                await turn()
            assert waiting.done() == (len(window.received) >= sent)
        await waiting

    asyncio.run(run())
