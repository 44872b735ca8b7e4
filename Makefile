# `make help` lists the targets. Everything runs in .venv, which is made on first use and again
# when pyproject.toml or constraints.txt changed.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_ARGS ?=
ARGS ?=
BIN := .venv/bin

# Two threads per process are slower than one when several processes share a small machine, and
# figures repeat better with one.
export OMP_NUM_THREADS ?= 1
# Nothing is ever fetched from a hub here; without this some loaders ask anyway and wait for it.
export HF_HUB_OFFLINE ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test verify fuzz lint format bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/.stamp: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/.stamp  ## the whole loop on one machine; ARGS='--quick --workspace DIR'
	$(BIN)/intonaco demo $(ARGS)

lint: .venv/.stamp  ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# A worker a core, a file at a time. Those that need the whole machine come afterwards: the demo and
# the browser.
SIDE_BY_SIDE := -n logical --dist loadfile tests/unit tests/contract tests/docs tests/integration
ALONE := tests/e2e

test: lint  ## lint, then the tests that take minutes
	$(BIN)/pytest -m "not slow" $(SIDE_BY_SIDE) $(ARGS)
	$(BIN)/pytest -m "not slow" $(ALONE) $(ARGS)

verify: lint  ## lint, then all tests: full simulations and the crash matrix too
	$(BIN)/pytest $(SIDE_BY_SIDE) $(ARGS)
	$(BIN)/pytest $(ALONE) $(ARGS)

fuzz: .venv/.stamp  ## schemathesis against a running gateway and console; ARGS='--examples 500'
	$(BIN)/python -m tests.fuzz $(ARGS)

bench: .venv/.stamp  ## run the benchmarks, write benchmarks/results.json; ARGS='NAME ...'
	$(BIN)/python benchmarks/run.py $(ARGS)

format: .venv/.stamp  ## put the code into its style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and everything that tools left
	rm -rf .venv .venv-fuzz build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf src/*.egg-info
