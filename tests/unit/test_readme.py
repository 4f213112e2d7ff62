"""The README is held to: its diagram is the import graph, its names are those of tests, its configuration loads."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

from outbox.daemon.config import load
from tests.engines.command import configured
from tests.tables import put

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def house(module: str) -> str:
    """Return the box of the diagram that a module is in."""
    return next((box for box in ("outbox.daemon", "outbox.demo", "outbox.bench") if module.startswith(box)), module.partition(".")[0])


def test_the_diagram_is_the_import_graph() -> None:
    diagram = re.search(r"```mermaid\n(.*?)```", README, re.DOTALL)
    assert diagram
    arrows = re.findall(r"^\s*(\w+)(?:\[.*?\])? --> (\w+)", diagram[1], re.MULTILINE)
    names = {"daemon": "outbox.daemon", "demo": "outbox.demo", "bench": "outbox.bench"}
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


def examples(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_its_configuration_loads(tmp_path: Path) -> None:
    daemon, bridges = examples("toml")
    assert load(configured(tmp_path, daemon)).pump.batch == 1000
    (bridge,) = load(configured(tmp_path, daemon + bridges)).bridges
    assert bridge.makes(load(configured(tmp_path, daemon + bridges))) == ["ledger.>"]
    routed = '[[routes]]\ntopics = "ledger.>"\nsink = "ledger"\n'
    (durable,) = load(configured(tmp_path, daemon + bridges.replace("# via", "via") + routed)).bridges
    assert durable.via == "outbox"


def test_its_broker_can_be_pasted(tmp_path: Path) -> None:
    """And ends, having said what it should; the durable one goes on where it was."""
    memory, durable = (example for example in examples("python") if "Broker()" in example)

    def run(code: str) -> list[str]:
        command = [sys.executable, "-W", "error", "-c", code]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=60)
        return ended.stdout.splitlines()

    assert run(memory) == ["42"]
    pasted = f"{memory}\n{durable}\nasyncio.run(restartable())"
    for found in range(2):
        assert run(pasted)[-1].startswith(f"{found} orders-log: {found} records in ")


@pytest.mark.parametrize("example", examples("python"), ids=lambda example: example[:40])
def test_its_examples_import_what_there_is(example: str) -> None:
    imports = [node for node in ast.walk(ast.parse(example)) if isinstance(node, ast.ImportFrom)]
    for node in imports:
        for name in node.names:
            assert hasattr(importlib.import_module(node.module or ""), name.name), name.name


def test_a_generated_table_goes_between_its_marks_and_nowhere_else() -> None:
    assert put("a\n<!-- x -->\nold\n<!-- /x -->\nb", "x", "| \\1 |\n") == "a\n<!-- x -->\n| \\1 |\n<!-- /x -->\nb"
    assert put("<!-- x -->\n<!-- /x -->", "x", "new") == "<!-- x -->\nnew\n<!-- /x -->"
    for text in ("a", "<!-- x -->\n<!-- /x -->" * 2):
        with pytest.raises(ValueError, match="and not once"):
            put(text, "x", "new")
