"""The configuration: what loads, and the one line that each mistake gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import pytest

from bridges.errors import ConfigurationError
from outbox.daemon.config import JetStreamSection, Settings, load
from tests.engines.command import configured

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EXAMPLE = """
[postgres]
dsn = "postgresql://app@127.0.0.1/shop"
schema = "outbox"

[pump]
batch = 1000
claims = 2            # batches in flight
poll_interval = 1.0

[sinks.events]
kind = "jetstream"    # or "kafka", "inprocess"
servers = ["nats://127.0.0.1:4222"]
stream = "EVENTS"     # kafka: servers = ["127.0.0.1:9092"]

[[routes]]
topics = "orders.>"
sink = "events"
subject = "shop.{topic}"   # optional; kafka: topic = "shop-{topic}"

[[consumers]]
app = "shop.handlers:consumer"   # a dedupe.Consumer

[http]
listen = "127.0.0.1:9410"
"""

MINIMAL = """
[postgres]
dsn = "postgresql://app:hunter2@127.0.0.1/shop"
[sinks.events]
kind = "inprocess"
[[routes]]
topics = ">"
sink = "events"
"""

KAFKA = '[sinks.events]\nkind = "kafka"\nservers = ["127.0.0.1:9092"]\n'
JETSTREAM = '[sinks.events]\nkind = "jetstream"\nservers = ["nats://127.0.0.1:4222"]\nstream = "EVENTS"\n'
IN_PROCESS = '[sinks.events]\nkind = "inprocess"\n'


Load: TypeAlias = "Callable[[str], Settings]"
Refusal: TypeAlias = "Callable[[str], list[str]]"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OUTBOXD_POSTGRES__DSN", "OUTBOXD_POSTGRES", "OUTBOXD_SINKS", "OUTBOXD_ROUTES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def loaded(tmp_path: Path) -> Load:
    def load_text(text: str) -> Settings:
        return load(configured(tmp_path, text))

    return load_text


@pytest.fixture
def refusal(loaded: Load) -> Refusal:
    """Load a text that must be refused, and return the lines of the error."""

    def lines_of(text: str) -> list[str]:
        with pytest.raises(ConfigurationError) as caught:
            loaded(text)
        assert "hunter2" not in str(caught.value)
        return str(caught.value).splitlines()

    return lines_of


def test_the_example_loads(loaded: Load) -> None:
    settings = loaded(EXAMPLE)
    assert settings.postgres.dsn.get_secret_value() == "postgresql://app@127.0.0.1/shop"
    assert settings.postgres.schema_ == "outbox"
    assert (settings.pump.batch, settings.pump.claims, settings.pump.poll_interval) == (1000, 2, 1.0)
    sink = settings.sinks["events"]
    assert isinstance(sink, JetStreamSection)
    assert (sink.servers, sink.stream) == (["nats://127.0.0.1:4222"], "EVENTS")
    (route,) = settings.routes
    assert (route.topics, route.sink, route.destination) == ("orders.>", "events", "shop.{topic}")
    (consumer,) = settings.consumers
    assert (consumer.app, settings.source_of(consumer)) == ("shop.handlers:consumer", "events")
    assert settings.http.listen == "127.0.0.1:9410"


@pytest.mark.parametrize("sink", [KAFKA, IN_PROCESS, JETSTREAM])
def test_every_kind_of_sink_loads_with_what_it_needs(loaded: Load, sink: str) -> None:
    assert "events" in loaded(MINIMAL.replace(IN_PROCESS, sink)).sinks


def test_a_kafka_route_may_name_its_topic(loaded: Load) -> None:
    text = MINIMAL.replace(IN_PROCESS, KAFKA) + 'topic = "shop-{topic}"\n'
    assert loaded(text).routes[0].destination == "shop-{topic}"


MISTAKES = {
    "unknown section": (MINIMAL + "[pmup]\n", "pmup: ", "not a known key"),
    "unknown key": (MINIMAL + "[pump]\nbacth = 3\n", "pump.bacth: ", "not a known key"),
    "unknown key of a sink": (MINIMAL.replace(IN_PROCESS, IN_PROCESS + "bucket = 1\n"), "sinks.events.bucket: ", "not a known key"),
    "missing dsn": (MINIMAL.replace("dsn = ", "# "), "postgres.dsn: ", "is needed"),
    "missing postgres": (IN_PROCESS + '[[routes]]\ntopics = ">"\nsink = "events"\n', "postgres: ", "is needed"),
    "missing servers": (MINIMAL.replace(IN_PROCESS, '[sinks.events]\nkind = "kafka"\n'), "sinks.events.servers: ", "is needed"),
    "no servers": (MINIMAL.replace(IN_PROCESS, KAFKA.replace('"127.0.0.1:9092"', "")), "sinks.events.servers: ", "at least 1"),
    "missing stream": (MINIMAL.replace(IN_PROCESS, JETSTREAM.replace('stream = "EVENTS"', "")), "sinks.events.stream: ", "is needed"),
    "a stream that cannot be": (MINIMAL.replace(IN_PROCESS, JETSTREAM.replace("EVENTS", "a.b")), "sinks.events.stream: ", "match"),
    "unknown kind": (MINIMAL.replace("inprocess", "rabbit"), "sinks.events: kind: 'rabbit'", "'jetstream', 'kafka', 'inprocess'"),
    "no kind": (MINIMAL.replace('kind = "inprocess"\n', ""), "sinks.events: kind: ", "'jetstream', 'kafka' or 'inprocess'"),
    "a route to no sink": (MINIMAL.replace('sink = "events"', 'sink = "evnets"'), "routes.0.sink: 'evnets'", "[sinks]: events"),
    "a pattern that means nothing": (MINIMAL.replace('">"', '"a.>.b"'), "routes.0.topics: ", "'>', which may only stand at the end"),
    "an empty token": (MINIMAL.replace('">"', '"a..b"'), "routes.0.topics: ", "token 2 is empty"),
    "subject on kafka": (MINIMAL.replace(IN_PROCESS, KAFKA) + 'subject = "a"\n', "routes.0.subject: ", "kind 'jetstream'"),
    "topic on jetstream": (MINIMAL.replace(IN_PROCESS, JETSTREAM) + 'topic = "a"\n', "routes.0.topic: ", "kind 'kafka'"),
    "subject in process": (MINIMAL + 'subject = "a"\n', "routes.0.subject: ", "kind 'jetstream'"),
    "an unknown placeholder": (MINIMAL.replace(IN_PROCESS, JETSTREAM) + 'subject = "{tpoic}"\n', "routes.0.subject: ", "{topic}"),
    "an empty subject": (MINIMAL.replace(IN_PROCESS, JETSTREAM) + 'subject = ""\n', "routes.0.subject: ", "tokens"),
    "nothing to do": (MINIMAL[: MINIMAL.index("[[routes]]")], "routes: ", "[[consumers]]"),
    "a batch of none": (MINIMAL + "[pump]\nbatch = 0\n", "pump.batch: ", "greater than or equal to 1"),
    "too many claims": (MINIMAL + "[pump]\nclaims = 65\n", "pump.claims: ", "less than or equal to 64"),
    "a word for a number": (MINIMAL + '[pump]\nbatch = "many"\n', "pump.batch: ", "integer"),
    "no time": (MINIMAL + "[pump]\npublish_timeout = 0\n", "pump.publish_timeout: ", "greater than 0"),
    "an app without a name": (MINIMAL + '[[consumers]]\napp = "shop"\n', "consumers.0.app: ", "match"),
    "a consumer of no sink": (MINIMAL + '[[consumers]]\napp = "a:b"\nsource = "x"\n', "consumers.0.source: 'x'", "[sinks]: events"),
    "a consumer of which sink": (
        MINIMAL + '[sinks.other]\nkind = "inprocess"\n[[consumers]]\napp = "a:b"\n',
        "consumers.0.source: ",
        "events, other",
    ),
    "no port": (MINIMAL + '[http]\nlisten = "127.0.0.1"\n', "http.listen: ", "match"),
    "credentials in clear": (
        MINIMAL.replace(IN_PROCESS, KAFKA.replace("127.0.0.1", "broker.example") + 'user = "u"\npassword = "hunter2"\n'),
        "sinks.events: tls: ",
        "need tls = true",
    ),
    "credentials in a URL": (
        MINIMAL.replace(IN_PROCESS, JETSTREAM.replace("nats://", "nats://u:hunter2@")),
        "sinks.events: servers: ",
        "must not hold credentials",
    ),
    "a user without a password": (MINIMAL.replace(IN_PROCESS, KAFKA + 'user = "u"\n'), "sinks.events: user and password: ", "both"),
}


@pytest.mark.parametrize(("text", "names", "allows"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_is_one_line_that_names_the_key_and_what_is_allowed(refusal: Refusal, text: str, names: str, allows: str) -> None:
    (line,) = refusal(text)
    assert line.startswith(names)
    assert allows in line


def test_each_of_several_mistakes_has_its_line(refusal: Refusal) -> None:
    lines = refusal(MINIMAL + "[pump]\nbatch = 0\nclaims = 0\n[http]\nx = 1\n")
    assert [line.split(":")[0] for line in lines] == ["pump.batch", "pump.claims", "http.x"]


def test_a_file_that_is_not_there_or_not_toml_is_one_line(refusal: Refusal, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"absent\.toml: no such file$"):
        load(tmp_path / "absent.toml")
    (line,) = refusal("[postgres\n")
    assert "outboxd.toml: " in line


def test_the_environment_wins_over_the_file(loaded: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOXD_POSTGRES__DSN", "postgresql://other@127.0.0.1/shop")
    monkeypatch.setenv("OUTBOXD_PUMP__BATCH", "7")
    settings = loaded(EXAMPLE)
    assert settings.postgres.dsn.get_secret_value() == "postgresql://other@127.0.0.1/shop"
    assert settings.pump.batch == 7
    assert settings.pump.claims == 2, "what the environment does not say comes from the file"


def test_the_environment_can_give_a_secret_to_a_sink_of_the_file(loaded: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOXD_SINKS__EVENTS__USER", "u")
    monkeypatch.setenv("OUTBOXD_SINKS__EVENTS__PASSWORD", "hunter2")
    sink = loaded(EXAMPLE).sinks["events"]
    assert isinstance(sink, JetStreamSection)
    assert sink.security().password == "hunter2"
    assert "hunter2" not in repr(sink)


def test_a_mistake_in_the_environment_is_named_too(refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOXD_PUMP__BACTH", "7")
    (line,) = refusal(MINIMAL)
    assert line.startswith("pump.bacth: ")


def test_secrets_are_in_no_text(loaded: Load) -> None:
    settings = loaded(MINIMAL.replace(IN_PROCESS, KAFKA + 'user = "u"\npassword = "hunter2"\n'))
    for text in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json(), repr(settings.postgres)):
        assert "hunter2" not in text


def test_everything_is_frozen(loaded: Load) -> None:
    with pytest.raises(ValueError, match="frozen"):
        loaded(MINIMAL).pump.batch = 3
