# What people call, and what CI calls. Everything is installed into .venv; `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
include tests/sandbox/sandbox.mk
include tests/coding_cli.mk

.PHONY: help setup setup-dev quickstart bubblewrap test test-unit chaos lint type check docs bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# Only the distance to the newest stamp decides; pip finds out what is missing.
$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON); set PYTHON=/path/to/python3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than 3.11; set PYTHON="; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

setup: $(STAMP) ## make .venv with the package
setup-dev: $(VENV)/.installed-dev ## the same with the developers' tools

quickstart: setup ## a real search on this machine, in about two minutes
	$(BIN)/python -m autoresearch_hpc +round=quickstart

bubblewrap: ## install bubblewrap, which one test puts around a trial (as root), or say how
	@command -v bwrap >/dev/null || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends bubblewrap; \
	else echo "bubblewrap is not installed here; as root run: apt-get install bubblewrap"; [ "$$CI" != true ]; fi

test: setup-dev slurm-packages bubblewrap coding-cli ## all tests that this machine can run
	$(BIN)/python -m pytest --numprocesses=3 --dist=worksteal -m "not alone"
	$(BIN)/python -m pytest -m alone

test-unit: setup-dev ## the tests that take seconds
	$(BIN)/python -m pytest tests/unit

SEED ?= 1
MINUTES ?= 20
KILLS ?= 100
chaos: setup-dev slurm-packages ## one search, its controller killed KILLS times amid faults of every kind, by SEED
	$(BIN)/python tests/chaos --seed $(SEED) --minutes $(MINUTES) --kills $(KILLS)

lint: setup-dev ## style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

type: setup-dev ## types alone
	$(BIN)/mypy

check: lint test ## what CI runs

docs: setup-dev ## the generated pages of docs/
	$(BIN)/python docs/generate_configuration.py

bench: setup ## one training of train.py on this machine's GPU, as a table
	$(BIN)/python benchmarks/train_gpu.py

clean: ## remove .venv and caches; runs/ and data/ stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist
