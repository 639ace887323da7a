SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
PYTEST_ARGS ?=
BARS ?=
ROUTING ?=
ENGINES ?= sqlite postgresql
ROUNDS ?= 200
SEED ?=
MINUTES ?= 10
SECONDS ?= 300
# The first seed of `make sim`: another one each day, so that days add up.
FIRST ?= $(shell date +%Y%j)0000
# The commit whose protos must stay readable; empty means: work it out (see proto-breaking).
AGAINST ?=

VENV := .venv
BIN := $(VENV)/bin

# $(call check,title,command): one line when it passes, everything it said when it does not.
define check
	@out=$$($(2) 2>&1) && echo "ok      $(1)" || { printf '%s\n' "$$out"; echo "FAILED  $(1)"; exit 1; }
endef

.PHONY: help setup demo test bench bench-routing faults nemesis fuzz sim verify fix proto clean
.PHONY: lint format-check types imports proto-lint proto-format proto-breaking proto-check

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

setup: $(VENV)/.dev ## Build .venv with everything needed to work on Hopper

demo: $(VENV)/.core ## Run a small Hopper and watch it work
	@$(BIN)/hopper demo

test: $(VENV)/.dev ## Run the tests (PYTEST_ARGS='-k router')
	@$(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

bench: $(VENV)/.dev ## Measure, against the bars (BARS="submit claim peers")
	@$(BIN)/python -m tests.bench $(BARS)

bench-routing: $(VENV)/.dev ## How well tasks are placed, through gRPC, against the bars (ROUTING='--quick --limit 2000')
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.routing_quality $(ROUTING)

faults: $(VENV)/.dev ## Kill, cut off and crowd a Hopper (ENGINES=sqlite ROUNDS=20 SEED=7)
	@HOPPER_FAULTS_STRICT=1 $(BIN)/python -m tests.faults $(addprefix --engine ,$(ENGINES)) --rounds $(ROUNDS) $(addprefix --seed ,$(SEED))
	@HOPPER_FAULTS_STRICT=1 HOPPER_FAULTS_NETWORK=1 HOPPER_RACE_ROUNDS=100 HOPPER_CANCEL_ROUNDS=500 HOPPER_FLOOD_TASKS=100000 \
		$(BIN)/python -m pytest tests/faults --ignore tests/faults/test_rounds.py --timeout 3600
	@HOPPER_WIRE_SIZE=20 $(BIN)/python -m pytest tests/federation/test_faults_wire.py --timeout 3600

nemesis: $(VENV)/.dev ## Kill Hoppers and cut the ways between them while tasks cross (MINUTES=30 SEED=7)
	@GRPC_ENABLE_FORK_SUPPORT=0 $(BIN)/python -m tests.faults.federation --minutes $(MINUTES) $(addprefix --seed ,$(SEED))

fuzz: $(VENV)/.dev ## Send nonsense to the ports that others reach (MINUTES=10 SEED=7)
	@$(BIN)/python -m tests.federation.fuzz --minutes $(MINUTES) $(addprefix --seed ,$(SEED))

sim: $(VENV)/.dev ## Work across Hoppers in thousands of simulated worlds (SECONDS=300 FIRST=1000)
	@$(BIN)/python -m tests.federation.sim --seconds $(SECONDS) --first $(FIRST)

verify: lint format-check types imports proto-lint proto-format proto-breaking proto-check ## Run every check (all of them: make -k verify)

fix: $(VENV)/.dev ## Repair what can be repaired by machine
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format --quiet .
	@$(BIN)/buf format -w

proto: $(VENV)/.dev ## Regenerate libs/pb from protos
	@$(BIN)/python deploy/protogen.py

clean: ## Remove .venv, caches and build output
	rm -rf $(VENV) .bench .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The parts of verify.

lint: $(VENV)/.dev
	$(call check,ruff check,$(BIN)/ruff check .)

format-check: $(VENV)/.dev
	$(call check,ruff format,$(BIN)/ruff format --check .)

types: $(VENV)/.dev
	$(call check,mypy --strict,$(BIN)/mypy)

imports: $(VENV)/.dev
	$(call check,import rules,$(BIN)/lint-imports)

proto-lint: $(VENV)/.dev
	$(call check,buf lint,$(BIN)/buf lint)

proto-format: $(VENV)/.dev
	$(call check,buf format,$(BIN)/buf format -d --exit-code)

# Compares with the commit where this branch left main; on main itself, with the commit before. Published main
# (origin/main) counts before a local one. buf is given the full commit id: it clones shallowly and finds no other.
proto-breaking: $(VENV)/.dev
	@asked='$(AGAINST)'; base="$$asked"; why='as asked'; \
	if [ -z "$$base" ]; then \
		why='where this branch left main'; \
		main=$$(git rev-parse -q --verify origin/main || git rev-parse -q --verify main || true); \
		if [ -n "$$main" ]; then base=$$(git merge-base HEAD "$$main" || true); fi; \
		if [ -z "$$base" ] || [ "$$base" = "$$(git rev-parse HEAD)" ]; then why='the commit before'; base='HEAD~1'; fi; \
	fi; \
	if ! commit=$$(git rev-parse -q --verify "$$base^{commit}"); then \
		if [ -n "$$asked" ]; then echo "FAILED  buf breaking: no commit $$asked here"; exit 1; fi; \
		echo "ok      buf breaking: no earlier commit in this clone, so nothing to compare with"; exit 0; \
	fi; \
	with="$$(git rev-parse --short "$$commit") ($$why)"; \
	if [ -z "$$(git ls-tree "$$commit" protos)" ]; then \
		echo "ok      buf breaking: no protos at $$with, so nothing to compare with"; exit 0; \
	fi; \
	if $(BIN)/buf breaking --against ".git#ref=$$commit"; then echo "ok      buf breaking: compared with $$with"; \
	else echo "FAILED  buf breaking: compared with $$with"; exit 1; fi

proto-check: $(VENV)/.dev ## Fail if libs/pb is not what protos say
	@new=$$(mktemp -d); trap 'rm -rf "$$new"' EXIT; \
	$(BIN)/python deploy/protogen.py --out "$$new"; \
	if diff -r -x __pycache__ libs/pb "$$new"; then echo "ok      libs/pb is up to date"; \
	else echo "FAILED  libs/pb is not what protos say; run: make proto"; exit 1; fi

# Stamps: pip runs again only when what it would read has changed.

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Hopper needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo "not there")." \
			"Try: make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml deploy/constraints.txt | $(VENV)/pyvenv.cfg
	@echo "installing Hopper into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c deploy/constraints.txt -e .
	@touch $@

$(VENV)/.dev: pyproject.toml deploy/constraints.txt | $(VENV)/pyvenv.cfg
	@echo "installing Hopper and its tools into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c deploy/constraints.txt -e '.[dev]'
	@touch $(VENV)/.core $@
