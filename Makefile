# Everything runs in the environment .venv, which `setup` makes; every target sets up what it needs and may be run again at any time.
#   make demo        from nothing to runs/demo/report.html
#   make test        the fast tests
PYTHON ?= python3
BIN := .venv/bin
PINS := -c constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test test-slow test-learning lint bench clean
.DEFAULT_GOAL := help

help:
	@sed -n '/^#   /s/^#   /  /p' Makefile
	@echo "  make setup | lint | bench | test-slow | test-learning | clean"

# The package and the demo's needs. torch is installed first, so that its pinned version decides which build is taken.
.venv/demo.stamp: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'guerdon needs Python 3.11 or newer')"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PINS) torch
	$(BIN)/python -m pip install --quiet $(PINS) -e '.[all]'
	touch $@

.venv/dev.stamp: .venv/demo.stamp
	$(BIN)/python -m pip install --quiet $(PINS) -e '.[dev]'
	touch $@

setup: .venv/dev.stamp

demo: .venv/demo.stamp
	$(BIN)/guerdon demo

test: .venv/dev.stamp
	$(BIN)/python -m pytest -n auto

test-slow: .venv/dev.stamp
	$(BIN)/python -m pytest -m slow --timeout 1800

test-learning: .venv/demo.stamp
	$(BIN)/python -m guerdon.recipes.learning_test

lint: .venv/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/dev.stamp
	for script in benchmarks/[!_]*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf .venv runs/demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
