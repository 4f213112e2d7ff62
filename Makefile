# Everything starts from python3 (3.11 or newer) alone: the rest is fetched into .venv and ~/.cache/outboxd.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test check faults bench format pins clean
.DEFAULT_GOAL := test

setup: $(READY)

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "outboxd needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv --clear .venv
	sed -n '/^uv==/,/[^\\]$$/p' requirements.txt > .venv/uv.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $(READY)

demo: $(READY)
	$(BIN)/outboxd demo

# Two at a time, each with engines of its own: most of what a test does is wait for a server.
test: $(READY)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder

# make faults SECONDS=600 SINK=kafka SEED=7: a mixture on each sink, or on one, and a table of what came of it in .faults; README=1 puts it
# into the README.
faults: $(READY)
	$(BIN)/python -m tests.faults $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) $(if $(SINK),--sink $(SINK)) $(FAULTS)
	$(if $(README),$(BIN)/python -m tests.faults.report .faults/faults.json > .faults/matrix.md && $(BIN)/python -m tests.tables faults .faults/matrix.md)

# make bench IDS="B1 B4": each claim about speed beside its limit, and a table of what came of it in .bench; README=1 puts it there, also
# where something could not be measured, which fails nevertheless.
bench: $(READY)
	@rm -f .bench/bench.md
	$(BIN)/outboxd bench $(IDS) --to .bench; code=$$?; \
	  $(if $(README),test ! -f .bench/bench.md || $(BIN)/python -m tests.tables bench .bench/bench.md || exit;) exit $$code

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Pinned with hashes, and with no index address in the file, so that any mirror serves it.
pins:
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header --extra dev --no-emit-package outboxd --upgrade --output-file requirements.txt pyproject.toml

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
