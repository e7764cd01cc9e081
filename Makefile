# The two commands for users: `make demo` and `make test`. Both set everything up by themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CODE := servers clients examples tests benchmarks tools

.PHONY: help setup kernels demo test check lint types security-tables security-check proto proto-check proto-lint proto-breaking pytest soak node bench clean

help: ## what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

setup: $(READY) ## the environment in .venv, with `bxmesh` on its bin

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "bxmesh needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	@echo "Setting up $(VENV): cctbx, PyTorch and their friends are about 1.2 GB and take a few minutes the first time."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --quiet -e '.[dev,monomers]'
	@touch $@

kernels: $(READY)
	@$(BIN)/python -m bxmesh.restraints.preparation

demo: kernels ## the main job on a real crystal structure
	@$(BIN)/bxmesh demo

test: check pytest node ## everything that must pass

check: lint types proto-lint proto-check security-check

lint: $(READY) ## style
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

types: $(READY) ## strict types over our code
	$(BIN)/mypy -p bxmesh.server -p bxmesh.client -p bxmesh.restraints -m bxmesh.layouts -m bxmesh.tensors -m bxmesh.signing
	$(BIN)/mypy tools benchmarks examples

proto: $(READY) ## generated/ from proto/
	$(BIN)/python tools/protos.py generate

proto-check: $(READY) ## that generated/ is what proto/ says
	$(BIN)/python tools/protos.py generate --check

proto-lint: $(READY) ## the contract's style
	$(BIN)/python tools/protos.py lint

security-tables: $(READY) ## the tables of docs/security.md from the code
	$(BIN)/python tools/security_tables.py

security-check: $(READY) ## that the tables of docs/security.md are what the code says
	$(BIN)/python tools/security_tables.py --check

proto-breaking: $(READY) ## the contract against the last commit on main
	$(BIN)/python tools/protos.py breaking

# How many processes run tests; 0 runs them in pytest's own, one after another.
AT_ONCE ?= 0

# Processes that tests start find our modules compiled, even where a container's image says not to.
pytest: kernels ## the tests in Python
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(AT_ONCE) --no-loadscope-reorder

soak: kernels ## storms of kill -9 over agents, server and Valkey, until it is stopped
	$(BIN)/python -m tests.chaos.soak

node: kernels ## the client in JavaScript against a real server
	$(BIN)/python tools/node.py

bench: kernels ## the benchmarks; ratios measured in one run
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --quiet -e '.[bench]'
	$(BIN)/python -m benchmarks

clean: ## remove what can be made again
	rm -rf $(VENV) .venv-proto .mypy_cache .ruff_cache .pytest_cache
