"""How fast one hot key moves in atomic batches, beside one message at a time; on the same server, in pairs.

python -m tests.bench.hotkey [--messages 50000] [--singly 5000] [--size 300] [--pairs 5] [--batch 1000] [--keys 1]
"""

from __future__ import annotations

import argparse
import statistics
import time
from datetime import UTC, datetime

import uvloop

from bridges.jetstream import JetStream, JetStreamSink
from bridges.jetstream.settings import delete_stream, make_stream
from bridges.message import Message, uuid7
from bridges.ports import PUBLISHED
from outbox.demo.engines import PrivateNats


async def rate(connection: JetStream, options: argparse.Namespace, *, atomic: bool) -> float:
    """Publish messages of the hot key to a fresh stream, a call at a time, and return messages a second."""
    await make_stream(connection, "BENCH", ["bench.>"], allow_atomic=atomic)
    sink = JetStreamSink(connection, stream="BENCH", timeout=30.0)
    count = options.messages if atomic else options.singly
    payload, now = b"x" * options.size, datetime.now(UTC)
    seconds = 0.0
    for start in range(0, count, options.batch):
        keys = [str(number % options.keys) for number in range(start, min(start + options.batch, count))]
        messages = [Message(uuid7(), "bench.hot", payload, key, created_at=now) for key in keys]
        began = time.perf_counter()
        outcomes = await sink.publish(messages)
        seconds += time.perf_counter() - began
        assert set(outcomes) == {PUBLISHED}, outcomes[:3]
    stored = (await (await connection.client()).jsm().stream_info("BENCH")).state.messages
    assert stored == count, f"stored {stored} of {count}"
    await delete_stream(connection, "BENCH")
    return float(count) / seconds


async def measure(options: argparse.Namespace, nats: PrivateNats) -> None:
    ratios = []
    async with JetStream(nats.servers) as connection:
        for pair in range(options.pairs + 1):
            order = (True, False) if pair % 2 else (False, True)
            rates = {atomic: await rate(connection, options, atomic=atomic) for atomic in order}
            ratio = rates[True] / rates[False]
            note = "" if pair else "   (warm-up, not counted)"
            print(f"atomic batches {rates[True]:9,.0f}/s   waves {rates[False]:9,.0f}/s   ratio {ratio:.1f}{note}")
            if pair:
                ratios.append(ratio)
    kind = f"{options.keys} key(s), calls of {options.batch}, {options.size} bytes"
    print(f"median ratio {statistics.median(ratios):.1f} of {len(ratios)} pairs; {kind}; {nats.version}")


def main() -> None:
    parser = argparse.ArgumentParser()
    defaults = (("messages", 50_000), ("singly", 5_000), ("size", 300), ("pairs", 5), ("batch", 1000), ("keys", 1))
    for name, default in defaults:
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with PrivateNats() as nats:
        uvloop.run(measure(options, nats))


if __name__ == "__main__":
    main()
