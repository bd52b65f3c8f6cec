# Every target works on a machine with nothing but Python 3.11; `make test` also installs the servers where it may.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
INPUT ?=
UV = $(shell command -v uv || echo $(CURDIR)/.tools/bin/uv)
RUN = $(UV) run --frozen
export UV_LINK_MODE ?= copy

.PHONY: help sync fmt lint type test conformance drills bench build docs demo servers clean uv
help: ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 20

uv:
	@command -v uv >/dev/null || test -x .tools/bin/uv || bash scripts/get-uv $(PYTHON)

sync: uv ## the development environment, from the lock
	@$(UV) sync --frozen --quiet

demo: uv ## a system of agents over this repository; INPUT=DIR for another, AMB_BROKER=redis for several processes
	@$(UV) sync --frozen --quiet --no-dev --inexact
	@.venv/bin/amb demo $(if $(INPUT),--input "$(INPUT)",--input "$(CURDIR)")

fmt: sync ## format
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

lint: sync ## ruff, mypy and pyright
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(MAKE) type

type: sync ## mypy and pyright
	$(RUN) mypy
	$(RUN) pyright

servers: ## what the tests need from the system
	@bash scripts/get-servers

test: sync servers ## everything: lint, unit tests, conformance on real servers, documentation, packages
	$(MAKE) lint
	$(RUN) bash scripts/run-tests

conformance: sync servers ## the conformance kit on every backend; writes build/conformance.json
	$(RUN) python -m tests.conformance.report

drills: sync servers ## the fault drills in full size on every durable broker; `make test` runs them small
	AMB_DRILLS=full $(RUN) pytest tests/drills

bench: sync servers ## the benchmarks, as ratios
	$(RUN) python -m benchmarks.memory
	$(RUN) python -m benchmarks.redis
	$(RUN) python -m benchmarks.serializers
	for broker in nats kafka rabbitmq sqs azure; do $(RUN) python -m benchmarks.$$broker || exit 1; done

build: sync ## every distribution as wheel and sdist in build/dist, each installed alone and imported
	$(RUN) python scripts/build.py

docs: sync ## run every block of the documentation
	$(RUN) pytest tests/docs

clean: ## remove what the other targets made
	rm -rf .venv .tools build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
