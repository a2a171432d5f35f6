# The two commands of this project are `make demo` and `make test`; everything they need is set up by them.
# All state lies in .venv/ and .state/, both ignored by git. Nothing outside the checkout is changed but the caches
# of uv and Go.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
UV_VERSION := 0.13.8
UV := .state/tools/uv-$(UV_VERSION)/bin/uv
SOURCES := operator worker tests docs helm

export PATH := $(CURDIR)/.state/bin:$(CURDIR)/.venv/bin:$(PATH)
export UV_PROJECT_ENVIRONMENT := $(CURDIR)/.venv
unexport VIRTUAL_ENV

.PHONY: help
help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo "  Details: README.md, CONTRIBUTING.md, docs/"

.PHONY: demo
demo: setup ## A local Kubernetes, the chart, a Reranker and a real query (ARGS="--help" for options)
	@.venv/bin/python tests/demo/demo.py up $(ARGS)

.PHONY: down
down: ## Remove the demo and its cluster
	@if [ -x .state/bin/devcluster ]; then .venv/bin/python tests/demo/demo.py down $(ARGS); else echo "nothing to remove"; fi

.PHONY: test
test: setup lint test-go ## All checks and tests
	@# 5: ARGS select none of them.
	.venv/bin/pytest tests/unit -n auto --dist loadfile $(ARGS) || [ $$? -eq 5 ]
	.venv/bin/pytest tests/e2e $(ARGS)

.PHONY: test-unit
test-unit: setup ## Unit tests (a few minutes)
	.venv/bin/pytest tests/unit -n auto --dist loadfile $(ARGS)

.PHONY: test-e2e
test-e2e: setup ## End-to-end tests on the local cluster, or on KUBECONFIG with RERANK_E2E_OPERATOR_IMAGE set
	.venv/bin/pytest tests/e2e $(ARGS)

.PHONY: test-go
test-go: .state/bin/devcluster
	tests/devcluster/build test

.PHONY: lint
lint: .venv/.synced ## Style and types
	.venv/bin/ruff check $(SOURCES)
	.venv/bin/ruff format --check $(SOURCES)
	.venv/bin/ty check --error-on-warning

.PHONY: generate
generate: .venv/.synced ## Write again everything that is generated and checked in
	.venv/bin/python docs/reference/generate.py
	.venv/bin/python docs/reference/metrics.py
	.venv/bin/python helm/generate.py

.PHONY: setup
setup: .venv/.synced .state/bin/devcluster .state/models/.built .state/bin/prometheus .state/bin/chromium ## Install and build everything the other targets need

$(UV):
	@echo "setup: uv $(UV_VERSION)"
	@$(PYTHON) -m venv .state/tools/uv-$(UV_VERSION)
	@.state/tools/uv-$(UV_VERSION)/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

.venv/.synced: $(UV) pyproject.toml uv.lock operator/pyproject.toml operator/rerank_api/pyproject.toml worker/pyproject.toml
	@echo "setup: Python packages (6 GB on disk: torch brings CUDA with it)"
	@$(UV) sync --frozen
	@touch $@

.PHONY: .state/bin/devcluster
.state/bin/devcluster: .venv/.synced
	@tests/devcluster/build

# Not pinned: a distribution's archive has one version at a time. Without it the tests that ask it are skipped.
.state/bin/prometheus:
	@tests/harness/get_prometheus || echo "setup: no Prometheus; the tests that ask a real one are skipped"

.state/bin/chromium:
	@tests/harness/get_chromium || echo "setup: no Chromium; the tests that look at the operator's page are skipped"

.state/models/.built: .venv/.synced $(wildcard tests/models/*.py tests/models/*.safetensors)
	@echo "setup: the demo model and its deliberately worse revision"
	@.venv/bin/python tests/models/build.py --variant good --out .state/models/demo-reranker >/dev/null
	@.venv/bin/python tests/models/build.py --variant worse --out .state/models/demo-reranker-worse >/dev/null
	@touch $@
