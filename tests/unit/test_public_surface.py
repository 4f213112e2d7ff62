"""What can be imported by its public name: this list, and no other."""

from __future__ import annotations

import ast
import importlib
import inspect
from importlib.resources import files

import pytest

SURFACE = {
    "outbox": ["Draft", "InvalidMessage", "Message", "NoTransaction", "Outbox"],
    "bridges": [
        "Backoff",
        "Batch",
        "Breaker",
        "Bridge",
        "Destination",
        "GuardedSink",
        "Mapping",
        "Message",
        "Outcome",
        "Pattern",
        "Published",
        "Reason",
        "Rejected",
        "Released",
        "Retry",
        "Route",
        "Router",
        "Security",
        "Sink",
        "Source",
    ],
    "outbox.deadletters": [
        "DeadLetter",
        "LanesTaken",
        "Letter",
        "NotDead",
        "Requeued",
        "Selection",
        "drop",
        "drop_in_batches",
        "list_dead",
        "replay",
        "requeue",
        "requeue_in_batches",
        "show_dead",
    ],
    "dedupe": ["Consumer", "Handler", "HandlerSink", "first_time"],
    "bridges.inprocess": [
        "Broker",
        "BrokerMetrics",
        "Codec",
        "CursorStore",
        "DataclassCodec",
        "DeadLetter",
        "DeadLetters",
        "Delivery",
        "Drop",
        "DurableCursors",
        "DurableLog",
        "Entry",
        "Figures",
        "Functions",
        "InProcessSink",
        "InProcessSource",
        "Log",
        "LogSettings",
        "MemoryLog",
        "Policy",
        "Received",
        "RecoveryReport",
        "State",
        "Subscription",
        "SubscriptionFigures",
        "Tenants",
        "Topic",
        "TopicFigures",
        "TypedSubscription",
    ],
    "bridges.jetstream": ["JetStream", "JetStreamSink", "JetStreamSource"],
    "bridges.kafka": ["Kafka", "KafkaSink", "KafkaSource"],
}
NAMES = [(module, name) for module, names in SURFACE.items() for name in names]
# A type alias has no docstring of its own at run time: it is the string below it.
ALIASES = {("bridges", "Outcome"): "bridges.ports", ("dedupe", "Handler"): "dedupe.handler"}


@pytest.mark.parametrize("module", SURFACE)
def test_the_public_names_are_exactly_these(module: str) -> None:
    assert importlib.import_module(module).__all__ == SURFACE[module]


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_every_public_name_resolves(module: str, name: str) -> None:
    assert getattr(importlib.import_module(module), name) is not None


@pytest.mark.parametrize(("module", "name"), [one for one in NAMES if one not in ALIASES])
def test_every_public_name_has_a_docstring(module: str, name: str) -> None:
    thing = getattr(importlib.import_module(module), name)
    # A named tuple or dataclass without one gets its signature.
    assert thing.__doc__
    assert not thing.__doc__.startswith(f"{name}(")


@pytest.mark.parametrize(("module", "name"), [one for one in NAMES if one not in ALIASES])
def test_every_public_method_has_a_docstring(module: str, name: str) -> None:
    thing = getattr(importlib.import_module(module), name)
    own = vars(thing) if inspect.isclass(thing) else {}
    named = {
        method for method, what in own.items() if not method.startswith("_") and (inspect.isroutine(what) or isinstance(what, property))
    }
    if issubclass(thing, tuple) if inspect.isclass(thing) else False:
        named -= {"count", "index"}
    assert [method for method in sorted(named) if not inspect.getdoc(own[method])] == []


@pytest.mark.parametrize("alias", ALIASES, ids=lambda alias: alias[1])
def test_every_public_alias_is_followed_by_its_docstring(alias: tuple[str, str]) -> None:
    body = ast.parse(inspect.getsource(importlib.import_module(ALIASES[alias]))).body
    (place,) = (at for at, node in enumerate(body) if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == alias[1])
    assert place + 1 < len(body)
    following = body[place + 1]
    assert isinstance(following, ast.Expr)
    assert isinstance(following.value, ast.Constant)


@pytest.mark.parametrize("module", [*SURFACE, "migrations", "migrations.runner"])
def test_every_package_says_what_it_is(module: str) -> None:
    assert importlib.import_module(module).__doc__


@pytest.mark.parametrize("package", ["outbox", "bridges", "dedupe", "migrations"])
def test_every_package_is_typed(package: str) -> None:
    assert files(package).joinpath("py.typed").is_file()


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    for module in ("bridges", "bridges.inprocess"):
        with pytest.raises(AttributeError, match=f"'{module}' has no attribute 'Nothing'"):
            _ = importlib.import_module(module).Nothing


def test_every_lazy_name_is_public() -> None:
    bridges = importlib.import_module("bridges")
    assert set(bridges._HOME_OF) | {"Message"} == set(bridges.__all__)
    inprocess = importlib.import_module("bridges.inprocess")
    assert set(inprocess._HOME_OF) < set(inprocess.__all__)
