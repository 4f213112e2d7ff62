"""``[[bridges]]``: the line that each mistake gets, and which bridges are said to feed each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bridges.errors import ConfigurationError
from outbox.daemon.config import Settings, load
from outbox.daemon.crossings import loops
from tests.engines.command import configured

if TYPE_CHECKING:
    from pathlib import Path

SINKS = """
[postgres]
dsn = "postgresql://app@127.0.0.1/shop"
[sinks.local]
kind = "inprocess"
[sinks.events]
kind = "jetstream"
servers = ["nats://127.0.0.1:4222"]
stream = "EVENTS"
[sinks.other]
kind = "jetstream"
servers = ["nats://127.0.0.1:4222"]
stream = "OTHER"
[sinks.alias]
kind = "jetstream"
servers = ["nats://127.0.0.1:4222", "nats://127.0.0.2:4222"]
stream = "EVENTS"
[sinks.log]
kind = "kafka"
servers = ["127.0.0.1:9092"]
"""


def bridge(name: str, source: str, sink: str, **more: str) -> str:
    lines = "".join(f"{key} = {value}\n" for key, value in more.items())
    return f'[[bridges]]\nname = "{name}"\nsource = "{source}"\nsink = "{sink}"\n{lines}'


def route(topics: str, sink: str, **more: str) -> str:
    return f'[[routes]]\ntopics = "{topics}"\nsink = "{sink}"\n' + "".join(f'{key} = "{value}"\n' for key, value in more.items())


def read(tmp_path: Path, text: str) -> Settings:
    return load(configured(tmp_path, SINKS + text))


def test_a_bridge_is_read(tmp_path: Path) -> None:
    text = bridge("b", "local", "events", mapping='"orders.*.> -> shop.{1}.{2}"', buffer="5", when_full='"drop"', topics='["orders.>"]')
    (section,) = read(tmp_path, text).bridges
    assert section.consumer == "bridge-b"
    assert section.takes == "orders.*.>"
    assert section.makes(read(tmp_path, text)) == ["shop.*.>"]
    assert (section.buffer, section.when_full, section.via) == (5, "drop", None)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (bridge("a b", "local", "events"), "bridges.0.name: String should match pattern"),
        (bridge("b", "nowhere", "events"), "bridges.0.source: 'nowhere' is not one of [sinks]: local, events, other, alias, log"),
        (bridge("b", "local", "nowhere"), "bridges.0.sink: 'nowhere' is not one of [sinks]: local, events, other, alias, log"),
        (bridge("b", "local", "events") + bridge("b", "events", "log"), "bridges.1.name: 'b' is the name of another bridge"),
        (bridge("b", "local", "local"), "bridges.0.sink: 'local' is its source too"),
        (
            bridge("b", "local", "events", mapping='"a.>.b -> c"'),
            "bridges.0.mapping: mapping 'a.>.b -> c': pattern 'a.>.b': token 2 is '>'",
        ),
        (bridge("b", "local", "events", mapping='"a..b -> c"'), "bridges.0.mapping: mapping 'a..b -> c': pattern 'a..b': token 2 is empty"),
        (
            bridge("b", "local", "events", mapping='"a.* -> c.{2}"'),
            "bridges.0.mapping: mapping 'a.* -> c.{2}': token 2 of the destination names {2}, which is not there",
        ),
        (bridge("b", "local", "events", topics='["a.>.b"]'), "bridges.0.topics: pattern 'a.>.b': token 2 is '>'"),
        (bridge("b", "local", "events", topics="[]"), "bridges.0.topics: "),
        (bridge("b", "local", "events", buffer="0"), "bridges.0.buffer: Input should be greater than or equal to 1"),
        (bridge("b", "local", "events", when_full='"explode"'), "bridges.0.when_full: Input should be 'block' or 'drop'"),
        (bridge("b", "local", "events", via='"pigeon"'), "bridges.0.via: Input should be 'outbox'"),
        (
            bridge("b", "events", "local", buffer="5"),
            "bridges.0.buffer: is for sources of kind 'inprocess'; 'events' is 'jetstream', which keeps what is not taken",
        ),
        (bridge("b", "log", "local", when_full='"drop"', topics='["t"]'), "bridges.0.when_full: is for sources of kind 'inprocess'"),
        (bridge("b", "log", "local"), "bridges.0.topics: is needed: which topics of Kafka to take"),
        (bridge("b", "local", "events", via='"outbox"'), "bridges.0.via: no route takes > from the outbox to sink 'events'"),
        (
            bridge("b", "local", "events", via='"outbox"', mapping='"> -> shop.{1}"') + route("orders.>", "events"),
            "bridges.0.via: no route takes shop.> from the outbox to sink 'events'",
        ),
        (bridge("b", "local", "events", bogus="1"), "bridges.0.bogus: is not a known key; known are name, source, sink, topics, mapping"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_key(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(tmp_path, text)
    (said,) = str(caught.value).splitlines()
    assert said.startswith(line)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (bridge("a", "local", "events"), []),
        (bridge("a", "local", "events") + bridge("b", "events", "local"), [["a", "b", "a"]]),
        # Neither takes what the other makes.
        (bridge("a", "local", "events", mapping='"x.> -> y.{1}"') + bridge("b", "events", "local", mapping='"x.> -> y.{1}"'), []),
        (bridge("a", "local", "events", topics='["x.>"]') + bridge("b", "events", "local", mapping='"y.> -> z.{1}"'), []),
        (bridge("a", "local", "events", topics='["x.>"]') + bridge("b", "events", "local", topics='["y.>"]'), []),
        # And back.
        (
            bridge("a", "local", "events", mapping='"x.> -> y.{1}"') + bridge("b", "events", "local", mapping='"y.> -> x.{1}"'),
            [["a", "b", "a"]],
        ),
        # Into its own source, or past it.
        (bridge("a", "local", "local", mapping='"> -> x.{1}"'), [["a", "a"]]),
        (bridge("a", "local", "local", mapping='"y.> -> x.{1}"'), []),
        # Two names for one stream, and two streams of one server.
        (bridge("a", "local", "events") + bridge("b", "alias", "local"), [["a", "b", "a"]]),
        (bridge("a", "local", "events") + bridge("b", "other", "local"), []),
        # In a round of three, with a fourth that leads into it.
        (
            bridge("in", "other", "local")
            + bridge("a", "local", "events")
            + bridge("b", "events", "log")
            + bridge("c", "log", "local", topics='["t"]'),
            [["a", "b", "c", "a"]],
        ),
        # Two that have nothing to do with each other.
        (
            bridge("a", "local", "events", mapping='"x.> -> y.{1}"')
            + bridge("b", "events", "local", mapping='"y.> -> x.{1}"')
            + bridge("c", "other", "other", mapping='"> -> z.{1}"'),
            [["a", "b", "a"], ["c", "c"]],
        ),
        # Through the outbox, by the route and by what it calls them.
        (
            bridge("a", "events", "events", via='"outbox"', mapping='"x.> -> y.{1}"', topics='["in.>"]')
            + route("y.>", "events", subject="out.{topic}"),
            [],
        ),
        (
            bridge("a", "events", "events", via='"outbox"', mapping='"*.> -> y.{2}"', topics='["in.>"]')
            + route("y.>", "events", subject="in.{topic}"),
            [["a", "a"]],
        ),
        # The first route that matches has it all.
        (
            bridge("a", "events", "other", via='"outbox"', mapping='"*.> -> y.{2}"') + route("y.>", "other") + route(">", "events"),
            [],
        ),
        (
            bridge("a", "log", "events", via='"outbox"', topics='["shop.x"]')
            + route("x.>", "events")
            + route("*", "log", topic="shop-{topic}")
            + route(">", "events"),
            [],
        ),
        (
            bridge("a", "log", "events", via='"outbox"', topics='["shop-x"]')
            + route("x", "events")
            + route(">", "log", topic="shop-{topic}"),
            [["a", "a"]],
        ),
    ],
)
def test_bridges_that_may_feed_each_other_are_found(tmp_path: Path, text: str, expected: list[list[str]]) -> None:
    assert list(loops(read(tmp_path, text))) == expected
