"""The README is held to: its diagram is the import graph, its names are those of tests, its configuration loads."""

from __future__ import annotations

import re
from pathlib import Path

import grimp

from outbox.daemon.config import load
from tests.engines.command import configured

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def house(module: str) -> str:
    """Return the box of the diagram that a module is in."""
    return next((box for box in ("outbox.daemon", "outbox.demo") if module.startswith(box)), module.partition(".")[0])


def test_the_diagram_is_the_import_graph() -> None:
    diagram = re.search(r"```mermaid\n(.*?)```", README, re.DOTALL)
    assert diagram
    arrows = re.findall(r"^\s*(\w+)(?:\[.*?\])? --> (\w+)", diagram[1], re.MULTILINE)
    names = {"daemon": "outbox.daemon", "demo": "outbox.demo"}
    drawn = {(names.get(one, one), names.get(other, other)) for one, other in arrows}
    graph = grimp.build_graph("bridges", "outbox", "dedupe", "migrations", include_external_packages=False, cache_dir=None)
    imports = {
        (house(module), house(imported))
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
        if house(module) != house(imported)
    }
    assert drawn == imports


def test_every_test_it_names_exists() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    named = re.findall(r"`(test_\w+)", README)
    assert len(named) > 5
    assert [name for name in named if f"def {name}" not in tests] == []


def test_its_configuration_loads(tmp_path: Path) -> None:
    example = re.search(r"```toml\n(.*?)```", README, re.DOTALL)
    assert example
    assert load(configured(tmp_path, example[1])).pump.batch == 1000
