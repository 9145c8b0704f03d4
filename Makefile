# Darkroom's commands. Each sets up what it needs: a virtual environment with pinned versions.
#
#   make run      the whole system on this machine; ends its start-up with a picture
#   make test     lint, types, import rules, and every test on real servers
#   make help     the rest

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help

help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(INSTALLED): pyproject.toml client/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Darkroom needs Python 3.11 or newer; name one with make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e '.[api,worker,local,dev]' -e './client[cli,playground]'
	@touch $@

install: $(INSTALLED) ## Make the virtual environment

run: install ## Start the whole system; Ctrl-C stops it
	@$(BIN)/python -m deploy.local run

smoke: install ## Start on free ports, make two pictures over HTTP, stop
	@$(BIN)/python -m deploy.local smoke

client: install ## Derive the blocking client from the asynchronous one
	@$(BIN)/python client/make_sync.py

lint: install ## Format, lint, types and import rules
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-cache > .lint-imports.log 2>&1 || { cat .lint-imports.log; rm -f .lint-imports.log; exit 1; }
	@rm -f .lint-imports.log

test: lint ## Lint, then the whole suite on real servers
	@$(BIN)/pytest --quiet

proof: install ## The full proof that seeds hold under any load
	@$(BIN)/pytest --quiet --timeout=3600 tests/proof

chaos: install ## The long reliability trials
	@$(BIN)/python -m tests.chaos

fuzz: install ## Fuzz a running system as two tenants, and throw 300 hostile pictures at it
	@$(BIN)/python -m tests.fuzz

bench: install ## Measure, each number against a baseline of the same run
	@$(BIN)/python -m tests.bench

bench-gpu: install ## Measure on a CUDA device; needs no network
	@$(BIN)/python -m tests.bench.gpu

bench-search: install ## Measure search among a million prompts; takes half an hour or more
	@$(BIN)/python -m tests.bench.search_million

scale: install ## Measure up to 32 simulated workers against one Postgres and Redis
	@$(BIN)/python -m tests.scale

demo-model: install ## Train the demo model on this machine, or go on where it stopped
	@# Without these, half of the time goes into page faults of large temporary tensors.
	@MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2000000000 MALLOC_TOP_PAD_=500000000 \
		OMP_WAIT_POLICY=passive $(BIN)/python -m deploy.demo_model.train

demo-eval: install ## Judge the demo model and write docs/demo-model.md
	@OMP_WAIT_POLICY=passive $(BIN)/python -m deploy.demo_model.evaluate

lock: install ## Write constraints.txt from what is installed
	@{ head -1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools | sed 's/+cpu$$//;s/+cu[0-9]*$$//'; } > .constraints && mv .constraints constraints.txt

clean: ## Remove the virtual environment and caches; data under .darkroom/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis build *.egg-info

.PHONY: help install run smoke client lint test proof chaos fuzz bench bench-gpu bench-search scale demo-model demo-eval lock clean
