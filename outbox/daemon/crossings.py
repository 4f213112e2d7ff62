"""What ``[[bridges]]`` may say, and which of the bridges feed each other. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from bridges.topics import Destination, Mapping, Pattern, covers, overlap
from outbox.daemon.sections import Section

if TYPE_CHECKING:
    from collections.abc import Iterator

    from outbox.daemon.config import Settings


class BridgeSection(Section):
    """``[[bridges]]``: from one broker to another."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    """One of its own among all the bridges that a message may pass, in whatever daemon: a message that comes back to a name is dropped.
    At the source it is the consumer ``bridge-NAME``."""
    source: str
    """The sink whose broker it consumes from."""
    sink: str
    """The sink to which it publishes."""
    topics: list[str] | None = Field(default=None, min_length=1)
    """What to take from the source, in the broker's own names, as patterns: NATS subjects, Kafka topics.
    By default, what the mapping and the routes say."""
    mapping: str | None = None
    """What becomes of topics, such as ``orders.*.> -> shop.{1}.{2}``. None: they stay as they are. What it is not for is a dead letter."""
    via: Literal["outbox"] | None = None
    """``outbox``: what it takes goes into the outbox and so survives a crash here, and the routes carry it to the sink."""
    buffer: Annotated[int, Field(ge=1)] | None = None
    """In process: messages in memory while the sink is away; the source's own ``buffer`` by default."""
    when_full: Literal["block", "drop"] = "block"
    """In process, with a full buffer: ``block`` whoever publishes, or ``drop`` what is new, and count it."""

    @field_validator("topics")
    @classmethod
    def _check_topics(cls, topics: list[str] | None) -> list[str] | None:
        for text in topics or ():
            Pattern(text)
        return topics

    @field_validator("mapping")
    @classmethod
    def _check_mapping(cls, text: str | None) -> str | None:
        if text is not None:
            Mapping(text)
        return text

    @property
    def consumer(self) -> str:
        """The name of the durable consumer or group at the source."""
        return f"bridge-{self.name}"

    @property
    def takes(self) -> str:
        """The pattern of the messages' own topics that it takes, as far as the configuration says."""
        return Mapping(self.mapping).pattern.text if self.mapping is not None else ">"

    def makes(self, settings: Settings) -> list[str]:
        """Return patterns for the topics of what it sends, as far as the configuration says."""
        if self.mapping is not None:
            return [Mapping(self.mapping).image]
        if settings.sinks[self.source].kind == "inprocess":  # which calls topics by their own names
            return self.topics or [">"]
        return [">"]


def check_bridges(settings: Settings) -> None:
    """Raise `ValueError`, naming the key, for a bridge that cannot work."""
    names: set[str] = set()
    known = ", ".join(settings.sinks) or "none"
    for place, bridge in enumerate(settings.bridges):
        here = f"bridges.{place}"
        if bridge.name in names:
            msg = f"{here}.name: {bridge.name!r} is the name of another bridge: what has passed that one would be dropped here"
            raise ValueError(msg)
        names.add(bridge.name)
        for key, name in (("source", bridge.source), ("sink", bridge.sink)):
            if name not in settings.sinks:
                msg = f"{here}.{key}: {name!r} is not one of [sinks]: {known}"
                raise ValueError(msg)
        if bridge.source == bridge.sink and bridge.mapping is None:
            msg = f"{here}.sink: {bridge.sink!r} is its source too: without a mapping it would only feed itself"
            raise ValueError(msg)
        _check_source(settings, bridge, here)
        if bridge.via == "outbox" and not any(
            route.sink == bridge.sink and overlap(route.topics, made) for route in settings.routes for made in bridge.makes(settings)
        ):
            made = ", ".join(bridge.makes(settings))
            msg = f"{here}.via: no route takes {made} from the outbox to sink {bridge.sink!r}: add one to [[routes]]"
            raise ValueError(msg)


def _check_source(settings: Settings, bridge: BridgeSection, here: str) -> None:
    kind = settings.sinks[bridge.source].kind
    if kind != "inprocess":
        for key, given in (("buffer", bridge.buffer is not None), ("when_full", bridge.when_full == "drop")):
            if given:
                msg = f"{here}.{key}: is for sources of kind 'inprocess'; {bridge.source!r} is {kind!r}, which keeps what is not taken"
                raise ValueError(msg)
    if kind == "kafka" and bridge.topics is None:
        msg = f"{here}.topics: is needed: which topics of Kafka to take"
        raise ValueError(msg)


def loops(settings: Settings) -> Iterator[list[str]]:
    """Yield the bridges that may feed each other, each time as the shortest way from one back to itself."""
    feeds = {
        one.name: [other.name for other in settings.bridges if _feeds(settings, one, other)]  # in their order: the same text every time
        for one in settings.bridges
    }
    told: set[str] = set()
    for name in feeds:
        if name not in told and (way := _way_back(feeds, name)):
            told.update(way)
            yield way


def _way_back(feeds: dict[str, list[str]], start: str) -> list[str] | None:
    ways = [[start]]
    seen: set[str] = set()
    while ways:
        way = ways.pop(0)
        for following in feeds[way[-1]]:
            if following == start:
                return [*way, start]
            if following not in seen:
                seen.add(following)
                ways.append([*way, following])
    return None


def _feeds(settings: Settings, one: BridgeSection, other: BridgeSection) -> bool:
    """Say whether the second may take what the first has sent."""
    return any(
        overlap(topic, other.takes) and any(overlap(name, taken) for taken in map(_as_pattern, other.topics or [">"]))
        for sink, topic, name in _sent(settings, one)
        if _same_broker(settings, sink, other.source)
    )


def _sent(settings: Settings, bridge: BridgeSection) -> Iterator[tuple[str, str, str]]:
    """Yield the sinks to which what a bridge takes goes, and patterns of its topics and of what they are called there."""
    for made in bridge.makes(settings):
        if bridge.via is None:
            yield bridge.sink, made, made
            continue
        for route in settings.routes:
            if overlap(route.topics, made):
                topics = made if covers(route.topics, made) else route.topics
                yield route.sink, topics, _as_pattern(Destination(route.destination).of(topics))
            if covers(route.topics, made):
                break  # the first that matches has it all


def _as_pattern(name: str) -> str:
    """Return a pattern for a broker's names in which a wildcard is a part of a token, as in ``shop-*``."""
    tokens: list[str] = []
    for token in name.split("."):
        tokens.append(">" if ">" in token else "*" if "*" in token else token)
        if tokens[-1] == ">":
            break
    return ".".join(tokens)


def _same_broker(settings: Settings, one: str, other: str) -> bool:
    """Say whether two sinks are two names of one broker: what is written to the one is read from the other."""
    ours, theirs = settings.sinks[one], settings.sinks[other]
    if one == other:
        return True
    if ours.kind == "inprocess" or theirs.kind == "inprocess" or ours.kind != theirs.kind:
        return False
    streams = getattr(ours, "stream", None), getattr(theirs, "stream", None)
    return not set(ours.servers).isdisjoint(theirs.servers) and streams[0] == streams[1]
