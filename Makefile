# `make demo` and `make test` set everything up by themselves, into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_FLAGS ?= -n 2 -m "not slow"

.PHONY: help setup demo test slow lint docs pages bench faults fuzz audit minimum clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1	\2/p' $(MAKEFILE_LIST)

setup: $(VENV)/.ready ## create the environment

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "wsol needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev,demo]'
	@touch $@

demo: setup ## real photos and a measured run, offline; ends with the path of its report
	$(BIN)/wsol demo --out runs/demo --overwrite

test: setup ## the default tests
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

slow: setup ## the slow tests
	$(BIN)/python -m pytest -n 2 -m slow

lint: setup ## format, lint, types, import floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup ## the documentation site, in docs/_build/html
	$(BIN)/python -m sphinx -b html -W --keep-going -E -q docs docs/_build/html

pages: docs ## the docs, their commands, the notebooks and pages as a reader has them; pictures go to runs/screenshots
	mkdir -p runs/screenshots
	WSOL_SCREENSHOTS=$(CURDIR)/runs/screenshots $(BIN)/python -m pytest -n 2 -m "slow or not slow" tests/docs/test_notebooks.py tests/engine/test_serve_browser.py tests/engine/test_report_runs.py
	$(BIN)/python -m pytest -n 2 -m slow tests/docs/test_pages_run.py tests/docs/test_methods_pages.py

bench: setup ## speed and memory beside the peers, as JSON in runs/
	mkdir -p runs
	$(BIN)/python tools/bench_localization.py --json runs/bench_localization.json
	$(BIN)/python tools/bench_cams.py --json runs/bench_cams.json
	$(BIN)/python tools/bench_refine.py --json runs/bench_refine.json

faults: setup ## at least 200 kills at random moments, and broken disks and clocks
	mkdir -p runs
	$(BIN)/python tools/faults.py --kills 200 --json runs/faults.json

fuzz: setup ## damaged files for every reader, ten minutes
	mkdir -p runs
	$(BIN)/python tools/fuzz.py --minutes 10 --json runs/fuzz.json

audit: setup ## bandit, and known vulnerabilities where PyPI answers
	$(BIN)/bandit -q -r wsol -c pyproject.toml
	$(BIN)/pip-audit --local --skip-editable --progress-spinner off

minimum: ## the tests on the oldest versions that pyproject allows
	$(PYTHON) -m venv .venv-minimum
	.venv-minimum/bin/python -m pip install --quiet --upgrade pip  # pip 23 does not get through this in minutes
	.venv-minimum/bin/python -m pip install --quiet $$($(PYTHON) tools/minimum_versions.py)
	.venv-minimum/bin/python -m pip install --quiet --no-deps --editable .
	NUMBA_CACHE_DIR=$(CURDIR)/.venv-minimum/numba .venv-minimum/bin/python -m pytest $(PYTEST_FLAGS) $(MINIMUM_TESTS)

clean: ## remove environments and caches, never runs/
	rm -rf .venv .venv-minimum .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
