# Each target works alone on a machine with Python 3.11+ and make: it makes .venv, installs what it needs, runs.
PYTHON ?= python3
PROMPT ?= a yellow car on the grass
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
QUIET := $(if $(CI),-q)
# A process for each core, each with one thread: tiny models gain nothing from more. Tests start many processes: an
# environment without __pycache__ would have each of them compile what it imports.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal
# Stamps say which installs are done; they are out of date once the pins change.
MADE := $(VENV)/.made
CORE := $(VENV)/.installed-core
SERVE := $(VENV)/.installed-serve
DEV := $(VENV)/.installed-dev
DOCS := $(VENV)/.installed-docs
PINS := pyproject.toml constraints.txt

export PROMPT
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo serve test proofs coverage slow lint format types docs wheel-check check hooks clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1 \t\2/' | expand -t 22

demo: $(CORE) ## draw PROMPT by plain decoding and by Hawk from one seed, side by side, into ./demo/
	$(BIN)/hawk compare "$$PROMPT" -o demo/

serve: $(SERVE) ## open a page to draw on, and serve images at http://127.0.0.1:8000 (more options in ARGS)
	$(BIN)/hawk serve --open $(ARGS)

test: $(DEV) ## fast tests (more pytest options in ARGS)
	$(PYTEST) $(ARGS)

proofs: $(DEV) ## the full product of proofs, which CI runs after the fast tests
	$(PYTEST) -m "proofs and not slow" $(ARGS)

coverage: $(DEV) ## fast tests, and which lines of src/hawk they run
	$(PYTEST) --cov=hawk --cov-report=term-missing $(ARGS)

slow: $(DEV) ## every test, the slow ones too
	$(PYTEST) -m "slow or not slow" $(ARGS)

lint: $(DEV) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEV) ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(DEV) ## mypy on src/hawk
	$(BIN)/mypy

docs: $(DOCS) ## the documentation site, into site/; a warning, a broken link or a missing docstring fails it
	$(BIN)/python -m pytest -q tests/test_docs.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

wheel-check: $(DEV) ## build sdist and wheel, install the wheel in a fresh environment, draw an image with it
	$(BIN)/python scripts/wheel_check.py

check: ## all that CI runs
	bash .ci/run

hooks: $(DEV) ## install the pre-commit hooks
	$(PIP) install $(QUIET) -c constraints.txt pre-commit
	$(BIN)/pre-commit install

clean: ## remove what make and the tools made, .venv too
	rm -rf $(VENV) demo dist build site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests scripts docs -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp, not bin/python: a venv cut short must not pass for a finished one.
$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo 'hawk needs Python 3.11 or newer, and "$(PYTHON)" is not; try: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(CORE): $(PINS) | $(MADE)
	$(PIP) install $(QUIET) -c constraints.txt -e .
	@touch $@

$(SERVE): $(PINS) | $(MADE)
	$(PIP) install $(QUIET) -c constraints.txt -e '.[serve]'
	@touch $(CORE) $@

$(DEV): $(PINS) | $(MADE)
	$(PIP) install $(QUIET) -c constraints.txt -e '.[dev,train]'
	@touch $(CORE) $(SERVE) $@

$(DOCS): $(PINS) | $(MADE)
	$(PIP) install $(QUIET) -c constraints.txt -e '.[dev,train,docs]'
	@touch $(CORE) $(SERVE) $(DEV) $@
