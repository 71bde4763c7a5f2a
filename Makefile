# `make demo` and `make test` do all the set-up: they make .venv and install the locked versions of what they need.
SHELL := bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
ifneq ($(PYTHON),)
ifeq ($(shell command -v '$(PYTHON)'),)
$(error PYTHON=$(PYTHON): there is no such program)
endif
endif
VENV := .venv
COMPILED := $(VENV)/compiled
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# One line for each package, so that a slow network does not look like a standstill.
PROGRESS := awk '/^(Collecting|Installing collected|Successfully)/ { sub(/ \(from.*/, ""); print; fflush() }'
# The versions are the lock's and hatchling builds in place, so pip has nothing to resolve.
FROM_LOCK := $(PIP) install --progress-bar off --require-hashes --requirement
EDITABLE := $(PIP) install --progress-bar off --no-deps --no-build-isolation --editable . --editable lab
COMPILE := $(VENV)/lock/bin/uv pip compile --quiet --universal --generate-hashes --custom-compile-command 'make lock' \
  --no-emit-package warmroute --no-emit-package warmroute-lab $(UPGRADE)

ifeq ($(origin PYTHON),command line)
ifneq ($(wildcard $(BIN)/python),)
$(info $(VENV) is there and is used: PYTHON is for making it, after `make clean`)
endif
endif

.PHONY: demo docs screenshots test test-unit test-fast test-layer test-compiled coverage e2e-kubernetes e2e-gateway lint bench soak build build-compiled wheels upload lock protos clean help

help:  ## list these targets
	@sed -n 's/^\([a-z0-9-]*\):.*##/\1\t/p' $(MAKEFILE_LIST) | expand -t 18

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it or say make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "making a virtual environment in $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: requirements/demo.txt pyproject.toml lab/pyproject.toml | $(BIN)/python
	@echo "installing $$(grep -c '==' $<) packages of $<: half a minute to two minutes the first time"
	@$(FROM_LOCK) $< | $(PROGRESS)
	@$(EDITABLE) | $(PROGRESS)
	@touch $@

$(VENV)/.dev: requirements/dev.txt pyproject.toml lab/pyproject.toml | $(BIN)/python
	@echo "installing $$(grep -c '==' $<) packages of $<: one to three minutes the first time"
	@$(FROM_LOCK) $< | $(PROGRESS)
	@$(EDITABLE) | $(PROGRESS)
	@touch $@ $(VENV)/.demo

# Environments of their own: development needs neither the site nor cibuildwheel, and the setuptools of mypyc is not that of the tests.
$(VENV)/.docs $(VENV)/.build $(VENV)/.wheels: $(VENV)/.%: requirements/%.txt | $(BIN)/python
	@test -d $(VENV)/$* || $(PYTHON) -m venv $(VENV)/$*
	@echo "installing $$(grep -c '==' $<) packages of $<"
	@$(VENV)/$*/bin/python -m pip --disable-pip-version-check install --progress-bar off --require-hashes --requirement $< | $(PROGRESS)
	@touch $@

docs: $(VENV)/.docs  ## the documentation as a site, in site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/mkdocs build --strict

demo: $(VENV)/.demo  ## a real Envoy, five simulated engines and the picker: see a prompt land on the warm pod; PORT=, ARGS=
	$(BIN)/warmroute demo --once $(if $(PORT),--port $(PORT)) $(ARGS)

test: $(VENV)/.dev lint  ## everything: style, types, imports, all tests
	HYPOTHESIS_PROFILE=thorough $(BIN)/pytest -n 2

test-unit: $(VENV)/.dev  ## tests in one process without sockets: 20 seconds on two cores
	$(BIN)/pytest -n 2 -m unit --ignore=tests/e2e --ignore=tests/browser

test-fast: $(VENV)/.dev  ## unit and integration tests that take seconds
	$(BIN)/pytest -n 2 -m "not e2e and not slow"

test-layer: $(VENV)/.dev  ## the tests of one layer: LAYER=unit, integration or e2e
	$(BIN)/pytest -n 2 -m "$(LAYER)"

screenshots: $(VENV)/.dev  ## pictures of the live page on simulated traffic, in docs/images; needs Chromium, takes ten minutes
	$(BIN)/python -m tests.browser.screenshots

# In the copy of the source tree the compiled modules lie beside their source: Python takes the compiled ones.
test-compiled: $(VENV)/.dev build-compiled  ## the unit tests against the compiled form; compiling takes two to four minutes
	$(BIN)/python -m zipfile -e dist/compiled/warmroute-*.whl $(COMPILED)/src
	cd $(COMPILED) && PYTHONPATH=src $(abspath $(BIN))/python -m warmroute version | grep compiled
	cd $(COMPILED) && PYTHONPATH=src $(abspath $(BIN))/pytest -n 2 -m unit --ignore=tests/e2e --ignore=tests/browser

coverage: $(VENV)/.dev  ## unit and integration tests, and the lines and branches that they do not reach
	$(BIN)/pytest -n 2 -m "not e2e and not slow" --cov --cov-report term-missing

e2e-kubernetes: $(VENV)/.dev  ## the walk-through against the cluster of KUBECONFIG
	WARMROUTE_E2E_KUBERNETES=1 $(BIN)/pytest tests/e2e/test_kubernetes.py -k real -rs

e2e-gateway: $(VENV)/.dev  ## the walk-through on a real kube-apiserver and Envoy Gateway; CONTRIBUTING.md names its variables
	$(BIN)/pytest tests/e2e/test_envoy_gateway.py -rs

bench: $(VENV)/.dev  ## what routing gains and what it costs, in short: under five minutes
	$(BIN)/warmroute demo --once
	$(BIN)/warmroute bench replay shared-prompts --requests 1500
	$(BIN)/warmroute bench cost --quick

soak: $(VENV)/.dev  ## three minutes of hostile clients, engines and neighbours: does an honest client notice?
	$(BIN)/python -m tests.soak

lint: $(VENV)/.dev  ## ruff, mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

build: $(VENV)/.dev  ## sdist and wheel of both distributions, in dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python -m build --no-isolation --outdir dist lab
	$(BIN)/twine check --strict dist/*

# mypyc leaves its C code in the source tree, so it gets a copy.
build-compiled: $(VENV)/.build  ## a wheel of the compiled form for this Python and platform, in dist/compiled; needs a C compiler
	rm -rf $(COMPILED) dist/compiled && mkdir -p $(COMPILED)
	git ls-files -z | tar --null --files-from=- -cf - | tar -xf - -C $(COMPILED)
	HATCH_BUILD_HOOK_ENABLE_MYPYC=true $(VENV)/build/bin/python -m pip --disable-pip-version-check wheel --no-deps --no-build-isolation \
	  --wheel-dir dist/compiled $(COMPILED)

wheels: $(VENV)/.wheels  ## release wheels of the compiled form, one for each Python, in dist/wheels; on Linux in containers: needs Docker
	$(VENV)/wheels/bin/cibuildwheel --output-dir dist/wheels .

upload: $(VENV)/.dev  ## sdists and wheels in dist/ to PyPI
	$(BIN)/twine upload --non-interactive dist/*.tar.gz dist/*.whl

protos: $(VENV)/.dev  ## compile protos/ to Python, after a change there
	$(BIN)/python protos/generate.py

lock: | $(BIN)/python  ## resolve requirements/*.txt anew after a change of dependencies; UPGRADE=--upgrade takes the newest versions
	@test -d $(VENV)/lock || $(BIN)/python -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip --disable-pip-version-check install --quiet uv
	$(COMPILE) requirements/dev.in --group dev --group build --output-file requirements/dev.txt
	$(COMPILE) requirements/demo.in --group build --constraints requirements/dev.txt --output-file requirements/demo.txt
	$(COMPILE) requirements/image.in --constraints requirements/dev.txt --output-file requirements/image.txt
	$(COMPILE) --group build --group compile --constraints requirements/dev.txt --output-file requirements/build.txt
	$(COMPILE) --group docs --constraints requirements/dev.txt --output-file requirements/docs.txt
	$(COMPILE) --group wheels --constraints requirements/dev.txt --output-file requirements/wheels.txt

clean:  ## remove the environment, caches and built files
	rm -rf $(VENV) dist site .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
