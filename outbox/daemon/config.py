"""What can be configured: ``outboxd.toml`` and ``OUTBOXD_*``, checked once, before anything is touched.

Each section by itself is in `outbox.daemon.sections`; here they are put together and read.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError, TomlConfigSettingsSource

from bridges.errors import ConfigurationError
from bridges.router import PATIENCE
from outbox.daemon.crossings import BridgeSection, check_bridges
from outbox.daemon.sections import (
    ConsumerSection,
    DedupeSection,
    HttpSection,
    InProcessSection,
    JetStreamSection,
    KafkaSection,
    PostgresSection,
    PumpSection,
    RouteSection,
    SinkSection,
    TelemetrySection,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# With the names of the sections for those who hold a `Settings` and go through its parts.
__all__ = [
    "ConsumerSection",
    "InProcessSection",
    "JetStreamSection",
    "KafkaSection",
    "RouteSection",
    "Settings",
    "load",
    "schemas_in_environment",
]


class Settings(BaseSettings):
    """Everything, frozen."""

    model_config = SettingsConfigDict(env_prefix="OUTBOXD_", env_nested_delimiter="__", extra="forbid", frozen=True)

    postgres: PostgresSection
    pump: PumpSection = PumpSection()
    sinks: dict[str, SinkSection] = Field(default_factory=dict)
    routes: list[RouteSection] = Field(default_factory=list)
    consumers: list[ConsumerSection] = Field(default_factory=list)
    bridges: list[BridgeSection] = Field(default_factory=list)
    dedupe: DedupeSection = DedupeSection()
    http: HttpSection = HttpSection()
    telemetry: TelemetrySection = TelemetrySection()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over the file, which arrives as the initial values."""
        return env_settings, init_settings

    @model_validator(mode="after")
    def _check_sink_names(self) -> Settings:
        for name in self.sinks:
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) or name in {"key", "operator"}:
                msg = f"sinks.{name}: the name of a sink is 1 to 64 characters of A-Z, a-z, 0-9, _ and -, and not 'key' or 'operator'"
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _check_names(self) -> Settings:
        known = ", ".join(self.sinks) or "none"
        if not self.routes and not self.consumers and not self.bridges:
            msg = "routes: nothing to do: at least one of [[routes]], [[consumers]] or [[bridges]] is needed"
            raise ValueError(msg)
        for place, route in enumerate(self.routes):
            sink = self.sinks.get(route.sink)
            if sink is None:
                msg = f"routes.{place}.sink: {route.sink!r} is not one of [sinks]: {known}"
                raise ValueError(msg)
            for key, kind in (("subject", "jetstream"), ("topic", "kafka")):
                if getattr(route, key) is not None and sink.kind != kind:
                    msg = f"routes.{place}.{key}: is for sinks of kind {kind!r}, and {route.sink!r} is {sink.kind!r}"
                    raise ValueError(msg)
        for place, consumer in enumerate(self.consumers):
            if consumer.source is None and len(self.sinks) != 1:
                msg = f"consumers.{place}.source: one of [sinks] must be named, since there is not exactly one: {known}"
                raise ValueError(msg)
            if consumer.source is not None and consumer.source not in self.sinks:
                msg = f"consumers.{place}.source: {consumer.source!r} is not one of [sinks]: {known}"
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _check_bridges(self) -> Settings:
        check_bridges(self)
        return self

    @model_validator(mode="after")
    def _check_timeouts(self) -> Settings:
        for name, section in self.sinks.items():
            if section.timeout + PATIENCE > self.pump.publish_timeout:
                most = self.pump.publish_timeout - PATIENCE
                msg = f"sinks.{name}.timeout: {section.timeout:g} must be at most {most:g}, pump.publish_timeout less {PATIENCE:g}"
                raise ValueError(msg)
        return self

    @property
    def uses_outbox(self) -> bool:
        """Whether there is anything to be in the outbox: messages, or the dead letters of bridges."""
        return bool(self.routes or self.bridges)

    def source_of(self, consumer: ConsumerSection) -> str:
        """Return the name of the sink whose broker the consumer consumes from."""
        return consumer.source or next(iter(self.sinks))


def load(path: Path | None) -> Settings:
    """Read the configuration. Raises `ConfigurationError` with a line for each thing that is wrong, named by its key."""
    values: Mapping[str, Any] = {}
    if path is not None:
        if not path.is_file():
            msg = f"{path}: no such file"
            raise ConfigurationError(msg)
        try:
            values = TomlConfigSettingsSource(Settings, toml_file=path)()
        except ValueError as problem:  # tomllib.TOMLDecodeError is one
            msg = f"{path}: {problem}"
            raise ConfigurationError(msg) from problem
    _check_environment()
    try:
        return Settings(**values)
    except SettingsError as problem:
        # Not chained: the original shows what was given.
        raise ConfigurationError(
            f"OUTBOXD_*: {problem}: sections in the environment are JSON, or a key each as in OUTBOXD_POSTGRES__DSN"
        ) from None
    except ValidationError as problem:
        raise ConfigurationError("\n".join(_lines(problem))) from None


def schemas_in_environment() -> dict[str, str]:
    """Return each track's schema as ``OUTBOXD_POSTGRES__SCHEMA`` and ``OUTBOXD_POSTGRES__DEDUPE_SCHEMA`` say, or its own name."""
    return {
        "outbox": os.environ.get("OUTBOXD_POSTGRES__SCHEMA", "outbox"),
        "dedupe": os.environ.get("OUTBOXD_POSTGRES__DEDUPE_SCHEMA", "dedupe"),
    }


def _check_environment() -> None:
    """Refuse a variable of ours that no section stands for: pydantic looks only for those it knows."""
    known = [*Settings.model_fields, "failpoint", "test"]  # OUTBOXD_TEST_* is for the tests
    for variable in os.environ:
        section = variable.removeprefix("OUTBOXD_").lower()
        if variable.startswith("OUTBOXD_") and not any(re.match(rf"{name}(_|$)", section) for name in known):
            msg = f"{variable}: is not a known variable; known are OUTBOXD_{{{','.join(Settings.model_fields).upper()}}}__*"
            raise ConfigurationError(msg)


def _lines(problem: ValidationError) -> list[str]:
    lines = []
    for error in problem.errors(include_url=False, include_input=False):
        # After a sink's name stands the tag of its kind, which is no key of the file.
        place = [part for index, part in enumerate(error["loc"]) if not (index == 2 and error["loc"][0] == "sinks")]
        text = error["msg"].removeprefix("Value error, ")
        if error["type"] == "extra_forbidden":
            text = f"is not a known key; known are {', '.join(_known_keys(error['loc']))}"
        elif error["type"] == "missing":
            text = "is needed"
        elif error["type"] == "union_tag_invalid":
            text = f"kind: {error['ctx']['tag']!r} is not one of {error['ctx']['expected_tags']}"
        elif error["type"] == "union_tag_not_found":
            text = "kind: is needed: 'jetstream', 'kafka' or 'inprocess'"
        key = ".".join(map(str, place))
        lines.append(f"{key}: {text}" if key else text)
    return lines


def _known_keys(place: Sequence[str | int]) -> list[str]:
    """Return the keys that stand where an unknown one was found."""
    section: type[BaseModel] = Settings
    if place[0] == "sinks" and len(place) > 3:
        by_kind: dict[str, type[BaseModel]] = {"jetstream": JetStreamSection, "kafka": KafkaSection, "inprocess": InProcessSection}
        section = by_kind[str(place[2])]
    else:
        for part in place[:-1]:
            if field := section.model_fields.get(str(part)):
                kinds: list[Any] = [field.annotation, *get_args(field.annotation)]
                section = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    return [field.alias or name for name, field in section.model_fields.items()]
