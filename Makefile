# Two commands: `make quickstart` distils a student, `make test` checks everything.

PYTHON ?= python3
# On a machine without a GPU set TORCH_INDEX to the address of PyTorch's CPU wheels, as the
# selector on pytorch.org shows it: plain pip would fetch several GB of CUDA libraries.
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
LOCK := $(VENV)/.locked
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
RECIPE ?= recipes/demo.yaml
TASK ?= nli

.PHONY: help quickstart test test-slow test-vllm check format schema bench-generation bench-vllm bench-training \
	bench-evaluation bench-filters bench-quality bench-extra results up down lock clean

help:
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*##/\t/' | expand -t 18

quickstart: $(LOCK) ## distil the demo's teacher into a student on this CPU
	@$(BIN)/distillery run $(RECIPE)

test: $(LOCK) ## run the tests, but the slow ones
	@$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(LOCK) ## run the slow tests: real servers, workers and kills
	@$(BIN)/python -m pytest -m "slow and not vllm"

test-vllm: $(LOCK) ## serve the demo's teacher with real vLLM on this CPU (10 minutes the first time)
	@TORCH_INDEX="$(TORCH_INDEX)" $(BIN)/python -m pytest -m vllm -rs tests/teacher/vllm

check: $(LOCK) ## lint, types, import contracts, generated files
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python -m deployments.generate --check

format: $(LOCK) ## format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

schema: $(LOCK) ## write the recipe's JSON schema and the deployments' parameters
	@$(BIN)/python -m deployments.generate

bench-generation: $(LOCK) ## measure teacher generation against a stub and a bare client (6 minutes)
	@$(BIN)/python -m benchmarks.generation

bench-vllm: $(LOCK) ## measure our stage against a bare client on one vLLM (15 minutes)
	@TORCH_INDEX="$(TORCH_INDEX)" $(BIN)/python -m benchmarks.vllm

bench-training: bench-extra ## measure the loss kernel, training steps, LoRA and stored soft targets (25 minutes)
	@$(BIN)/python -m benchmarks.training

bench-evaluation: $(LOCK) ## measure what evaluation costs beside the models (5 minutes)
	@$(BIN)/python -m benchmarks.evaluation

bench-filters: $(LOCK) ## measure the filters over prompts, beside datatrove's where DISTILLERY_DATATROVE names it (10 minutes)
	@$(BIN)/python -m benchmarks.filters

bench-quality: bench-extra ## measure what students learn by each objective (hours; resumable)
	@$(BIN)/python -m benchmarks.quality

results: $(LOCK) ## let Gemma 3 270M learn one task, such as TASK=nli (10 to 60 minutes; docs/results.md)
	@$(BIN)/python -m benchmarks.gemma $(TASK)

bench-extra: $(LOCK)
	@$(PIP) -c constraints.txt -e '.[bench]'

up: $(LOCK) ## start server, pools and workers here, and register the deployments
	@$(BIN)/python -m deployments.local up

down: $(LOCK) ## stop what `make up` started
	@$(BIN)/python -m deployments.local down

lock: $(LOCK) ## write constraints.txt from what is installed
	@$(BIN)/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools \
		| sed -E 's/\+cpu$$//' > constraints.txt

clean: ## remove the environment and everything that runs have made
	rm -rf $(VENV) .distillery

$(LOCK): pyproject.toml constraints.txt
	@echo "Creating $(VENV) (a few minutes the first time) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@$(PIP) -c constraints.txt -e '.[dev,s3,postgresql,onnx,gguf,pii,ray,mlflow,lm-eval]'
	@touch $@
