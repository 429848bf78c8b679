# `make demo` and `make test` each work on a fresh clone: they make the environment they need.
# PYTHON chooses the interpreter it is made with (3.11 or newer).

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
BUILD := build
DEMO ?= demo-run

# One stamp for each content of these files and each place, so that an environment is renewed when
# it has to be and `make` starts at once when not. Times would not do: a checkout sets them anew.
KEY := $(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)-$(shell echo '$(CURDIR)' | cksum | cut -d ' ' -f 1)
STAMP := $(VENV)/.installed-$(KEY)

# Nothing here asks a hub for anything, and nothing is kept in the home folder.
export HF_HUB_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
export HF_HOME := $(CURDIR)/$(BUILD)/hf
export RAY_USAGE_STATS_ENABLED := 0
export TOKENIZERS_PARALLELISM := false

# The tests' models are tiny: threads that wait for each other take ten times as long as one.
test fast test-marked: export OMP_NUM_THREADS := 1

# These need hardware or an engine that `.[dev]` does not bring; run them with `make test-marked M=gpu`.
ELSEWHERE := not gpu and not vllm

.PHONY: help setup lint fast test test-marked demo clean

help: ## Say what there is to make.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile

setup: $(STAMP) ## Make the environment.

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "raypeft needs Python 3.11 or newer; name one with PYTHON=, this is $$($(PYTHON) --version)" >&2; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@rm -f $(VENV)/.installed-*
	@touch $@

lint: $(STAMP) ## Check style and types.
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

fast: $(STAMP) ## Run the tests that need neither torch nor Ray: under a minute.
	$(PY) -m pytest -m "$(ELSEWHERE) and not torch and not ray and not slow"

test: lint ## Run every check that needs no GPU.
	$(PY) -m pytest -m "$(ELSEWHERE)"

test-marked: $(STAMP) ## Run the tests of one marker: make test-marked M=gpu.
	$(PY) -m pytest -m "$(M)"

demo: $(STAMP) ## Train, evaluate and compare six adapters of a tiny base.
	$(VENV)/bin/raypeft demo --folder $(DEMO)

clean: ## Remove what was made here, the environment aside.
	rm -rf $(BUILD) dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage $(DEMO)
	find raypeft tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
