# Every target does its own set-up, in .venv; nothing outside of this folder is touched.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 4
ARGS ?=

.DEFAULT_GOAL := help
SEEDS ?= 1000
FROM ?= 1
.PHONY: help setup run story test simulate fuzz drill bench lint proto baseline constraints clean

help: ## show this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make the virtualenv with everything, at pinned versions

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer is on PATH: install one, or say make PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

run: $(READY) ## start everything on an embedded etcd and show it (ARGS='--agents 9' for options)
	@exec $(BIN)/election dev $(ARGS)

story: $(READY) ## a leader that is paused and wakes up too late, without the fence and with it
	@$(BIN)/python examples/paused_leader.py

test: $(READY) ## run all tests; those that need etcd start their own
	@$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

# A night's work: SEEDS=1000000. Known mistakes, which have to be found: SEEDS=10000 ARGS=--mistakes
simulate: $(READY) ## run the library on an etcd in memory, hurt by a seed, and check every promise (SEEDS=10000 FROM=1)
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS) --from $(FROM) $(ARGS)

fuzz: $(READY) ## send a hundred thousand bad requests to a server of the gRPC API (ARGS='--seed 7')
	@$(BIN)/python -m tests.fuzz $(ARGS)

drill: $(READY) ## an hour of faults on whole systems, and a check of every promise (ARGS='--seed 7')
	@$(BIN)/election drill --duration 1h $(ARGS)

bench: $(READY) ## measure handover, takeover and fenced writes, beside etcdctl elect (ARGS='--runs 50')
	@$(BIN)/python -m tests.bench $(ARGS)

lint: $(READY) ## style, types, generated code, Dockerfile and manifests
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && cp election/pb/__init__.py election/pb/pool.py "$$fresh" && \
	  $(BIN)/python proto/generate.py "$$fresh" && diff -r -x __pycache__ "$$fresh" election/pb || \
	  { echo "error: election/pb is not what proto/ says: run make proto"; exit 1; }
	@cd proto && ../$(BIN)/buf lint && ../$(BIN)/buf format --diff --exit-code --path election && \
	  ../$(BIN)/buf breaking --path election --against baseline.binpb || \
	  { echo "error: the protos are not as proto/buf.yaml wants them, or break what is published"; exit 1; }
	@$(BIN)/hadolint deploy/Dockerfile
	@command -v kubectl >/dev/null || { echo "error: kubectl is not on PATH: it builds the manifests"; exit 1; }
	@kubectl kustomize deploy/kubernetes/base | $(BIN)/kubernetes-validate --strict -

proto: $(READY) ## write election/pb anew from proto/
	@rm -rf election/pb/etcd election/pb/election
	@$(BIN)/python proto/generate.py election/pb

baseline: $(READY) ## take the API as it is now for what later ones must not break
	@cd proto && ../$(BIN)/buf build --path election --exclude-source-info -o baseline.binpb

constraints: ## write constraints.txt anew, from the newest versions that pyproject.toml allows
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(PYTHON) -m venv "$$fresh" && \
	  "$$fresh/bin/python" -m pip install --quiet -e '.[dev]' && \
	  "$$fresh/bin/python" -m pip freeze --exclude-editable --exclude election > constraints.txt

clean: ## remove what the other targets made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
