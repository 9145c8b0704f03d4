# Darkroom's commands. Each sets up what it needs: a virtual environment with pinned versions.
#
#   make run      the whole system on this machine; ends its start-up with an image
#   make test     lint, types, import rules, and the tests, on real servers
#   make help     the rest

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Some machines forbid byte code; without it each of the hundreds of processes that the tests start
# recompiles this project, for half a second.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help

help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

$(INSTALLED): pyproject.toml client/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Darkroom needs Python 3.11 or newer; name one with make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e '.[api,mcp,worker,local,dev,docs]' -e './client[cli,playground]'
	@touch $@

install: $(INSTALLED) ## Make the virtual environment

run: install ## Start the whole system; Ctrl-C stops it
	@$(BIN)/darkroom-server up

smoke: install ## Start on free ports, make two images over HTTP, stop
	@$(BIN)/darkroom-server smoke

client: install ## Derive the blocking client from the asynchronous one
	@$(BIN)/python client/make_sync.py

lint: install ## Format, lint, types and import rules
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@nice -n 19 $(BIN)/mypy --no-error-summary # beside the tests it takes what they leave
	@$(BIN)/lint-imports --no-cache > .lint-imports.log 2>&1 || { cat .lint-imports.log; rm -f .lint-imports.log; exit 1; }
	@rm -f .lint-imports.log

# make test PROCESSES=3 tests in three processes; the twenty slowest tests are named at the end.
PROCESSES ?= 2
PYTEST = $(BIN)/pytest --quiet --numprocesses=$(PROCESSES) --no-loadscope-reorder --durations=20 --durations-min=1

test: install ## Lint and tests on real servers, side by side; ARGS=tests/unit/engine: a part
ifdef ARGS
	@$(BIN)/pytest --quiet $(ARGS)
else
	@$(MAKE) --no-print-directory --keep-going --jobs=2 lint short-tests
endif

short-tests: install
	@$(PYTEST) -m 'not long'

# They wait more than the others.
long-tests: PROCESSES := $(if $(filter file,$(origin PROCESSES)),3,$(PROCESSES))
long-tests: install ## What `make test` leaves out: long trials, all journeys, examples in docs, proofs
	@DARKROOM_PROOF_CROWDS=20 $(PYTEST) --timeout=600 -m long tests/chaos tests/proof tests/e2e tests/integration tests/unit

test-all: ## Every test but the full proof (`make proof`): `make test`, then `make long-tests`
	@$(MAKE) --no-print-directory test; short=$$?; \
		$(MAKE) --no-print-directory long-tests && exit $$short

coverage: install ## Lines and branches that `make test` runs, over all processes; ARGS as there
	@rm -rf .coverage && mkdir .coverage
	@$(BIN)/coverage run -m pytest --quiet $(or $(ARGS),--numprocesses=$(PROCESSES) -m 'not long'); status=$$?; \
		$(BIN)/coverage combine --quiet && $(BIN)/coverage html --quiet && $(BIN)/coverage report; \
		exit $$status

proof: install ## The full proof that seeds hold under any load
	@$(BIN)/pytest --quiet --timeout=3600 tests/proof

chaos: install ## The long reliability trials
	@$(BIN)/python -m tests.chaos

fuzz: install ## Fuzz a running system as two tenants, and throw 300 hostile images at it
	@$(BIN)/python -m tests.fuzz

bench: install ## Measure, each number against a baseline of the same run
	@$(BIN)/python -m tests.bench

bench-gpu: install ## Measure on a CUDA device; needs no network
	@$(BIN)/python -m tests.bench.gpu

bench-peers: install ## Measure Darkroom against its peers; 45 minutes, 15 GB of environments
	@$(BIN)/python -m tests.bench.peers --docs

bench-search: install ## Measure search among a million prompts; takes half an hour or more
	@$(BIN)/python -m tests.bench.search_million

scale: install ## Measure up to 32 simulated workers against one Postgres and Redis
	@$(BIN)/python -m tests.scale

growth: install ## Measure among 10⁴ to 10⁷ finished jobs; resumes; an hour and 40 GB for all
	@$(BIN)/python -m tests.scale.growth

demo-model: install ## Train the demo model further, or continue where that stopped
	@# Without these, half of the time goes into page faults of large temporary tensors.
	@MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2000000000 MALLOC_TOP_PAD_=500000000 \
		OMP_WAIT_POLICY=passive $(BIN)/python -m deploy.demo_model.train

demo-eval: install ## Judge the demo model and write docs/demo-model.md
	@OMP_WAIT_POLICY=passive $(BIN)/python -m deploy.demo_model.evaluate

pictures: install ## Retake the docs' screenshots of the playground; needs Chromium
	@$(BIN)/python -m tests.e2e.browser.pictures

docs: install ## Build the documentation site into site/; a broken link or anchor fails
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet && echo site/index.html

images: ## Build the images with docker, podman or buildah; PYTHON_IMAGE, PIP_CONF, …: docs/deploy.md
	@$(PYTHON) -m deploy.docker.images

container-test: install ## Build the images, run the Compose file, kill a worker, restore a backup
	@$(BIN)/pytest --quiet -rs tests/containers

monitoring-test: install ## Test each alert by promtool, ask a live Prometheus every expression
	@$(BIN)/pytest --quiet tests/unit/telemetry tests/integration/telemetry/test_prometheus.py

# Each part is tried where nothing else of this project is: the wheels (built from the sdists) in
# environments of their own, the archives in an engine that has forgotten their images. An engine
# without base images ends it at the start, not after a quarter of an hour; ENGINE=none asks for none.
release: install ## Build dist/: wheels, sdists, SBOMs, chart, site, images where an engine is; try each
	@$(PYTHON) -m deploy.docker.images --fetch || [ $$? = 69 ]
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[release]'
	@rm -rf dist && $(BIN)/python -m build --no-isolation --outdir dist . >/dev/null && \
		$(BIN)/python -m build --no-isolation --outdir dist client >/dev/null
	@client=$$(echo dist/darkroom_client-*.whl); server=$$(echo dist/darkroom_server-*.whl); \
	for tried in "$$client[cli]" "$$server[local] $$client"; do \
		rm -rf dist/tried && $(PYTHON) -m venv dist/tried && \
		dist/tried/bin/python -m pip install --quiet --disable-pip-version-check \
			-c constraints.txt $$tried && dist/tried/bin/darkroom --version || exit 1; \
	done
	@cd dist && tried/bin/darkroom-server smoke
	@$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
		--output-file dist/darkroom-server.cdx.json dist/tried/bin/python
	@for image in api backup playground worker; do \
		$(BIN)/python -m deploy.docker.requirements $$image | $(BIN)/cyclonedx-py requirements \
			--output-reproducible --output-file dist/darkroom-$$image-image.cdx.json - || exit 1; \
	done
	@rm -rf dist/tried build client/build
	@helm=$$(command -v $(BIN)/helm || command -v helm) || { echo "No helm: no chart in dist/"; exit 0; }; \
		$$helm package --destination dist deploy/helm/darkroom && \
		$$helm template dist/darkroom-[0-9]*.tgz >/dev/null
	@$(MAKE) --no-print-directory docs && tar -C site -czf dist/darkroom-docs.tar.gz .
	@$(PYTHON) -m deploy.docker.images --save dist || [ $$? = 69 ] # no engine: it says so
	@ls -l dist

version: ## Set the version everywhere: make version TO=0.2.0
	@$(PYTHON) -m deploy.version $(TO)
	@$(MAKE) --no-print-directory install
	@$(BIN)/python -m deploy.openapi_document

lock: install ## Write constraints.txt, and the images' requirements, from what is installed
	@{ head -1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools | sed 's/+cpu$$//;s/+cu[0-9]*$$//'; } > .constraints && mv .constraints constraints.txt
	@$(BIN)/python -m deploy.docker.requirements

clean: ## Remove the virtual environment and caches; data under .darkroom/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis build *.egg-info .coverage

.PHONY: help install run smoke client lint test short-tests long-tests test-all coverage proof chaos fuzz bench bench-gpu bench-peers bench-search scale growth demo-model demo-eval pictures docs images container-test monitoring-test release version lock clean
