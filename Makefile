# Everything runs in .venv; `make` alone lists the targets.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
CODE := sharevl_lite kernels tests scripts

.DEFAULT_GOAL := help
.PHONY: help install demo test test-gpu bench lint types imports format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Create .venv and install the project with its exact versions (redone when they change)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: install ## Train on digits with the CPU (goes on where an interrupted demo stopped)
	$(BIN)/sharevl-lite train configs/digits_cpu.yaml --resume auto

test: lint types imports ## Lint, types, import contracts and tests
	$(BIN)/pytest -n 2

test-gpu: install ## The tests that need a CUDA device
	$(BIN)/pytest -m gpu

bench: install ## Measure the kernels and packed updates on a CUDA device; tables and CSVs in bench-results/
	$(BIN)/python kernels/benchmarks/resources.py
	$(BIN)/python kernels/benchmarks/bench_grouped_logprob.py
	$(BIN)/python kernels/benchmarks/bench_packed_update.py
	$(BIN)/python kernels/benchmarks/bench_hierarchical_advantage.py

lint: install ## Check formatting and lint
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)

types: install ## Check types of both packages
	MYPYPATH=kernels $(BIN)/mypy

imports: install ## Check which room imports which (contracts in pyproject.toml)
	$(BIN)/lint-imports

format: install ## Format and apply the safe fixes
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

clean: ## Remove caches and build outputs; .venv and runs stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find $(CODE) -type d -name __pycache__ -prune -exec rm -rf {} +
