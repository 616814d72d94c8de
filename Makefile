# Everything sets itself up in .venv; a fresh machine needs Python >= 3.11 and make.
#   make demo [BACKEND=pyro]    train on real digits, print held-out ELBOs, draw reconstructions
#   make test                   the tests, most of them with machine code that is made quickly and runs slowly;
#                               PPL_TVAE_DATA=DIR adds those on the real data files there
#   make lint, make types       ruff, mypy
#   make bench                  training steps and importance weights beside the same model without a PPL, and how a step
#                               grows with the sizes, in 5 to 9 minutes; the rows are in runs/bench/ too
#   make gpu [JAX_CUDA=cuda12]  on a machine with a GPU: the tests that need one, steps per second,
#                               and how long the paper's run of a model would take
# torch: the constraints file pins a version that has a CPU build; pip takes it where an index offers it, e.g. with
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test

PYTHON ?= python3
BACKEND ?= numpyro
DEMO_RUN ?= runs/demo-$(BACKEND)
JAX_CUDA ?= cuda12
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile

.PHONY: demo test lint types bench gpu clean

demo: .venv/installed
	rm -rf $(DEMO_RUN)
	$(BIN)/ppl-tvae train --config examples/demo.toml --backend $(BACKEND) --out $(DEMO_RUN)
	$(BIN)/ppl-tvae evaluate $(DEMO_RUN) --particles 10 --max-sequences 64
	$(BIN)/ppl-tvae figures $(DEMO_RUN)

test: .venv/installed
	PPL_TVAE_QUICK_CODE=1 $(PYTEST) -m 'not machine_code'
	$(PYTEST) -m machine_code

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

bench: .venv/installed
	mkdir -p runs/bench
	$(BIN)/python -m benchmarks.training_step --seconds 2 --json runs/bench/steps.json
	$(BIN)/python -m benchmarks.growth --seconds 0.5 --json runs/bench/growth.json
	$(BIN)/python -m benchmarks.evaluation --sequences 16 --particles 10,160 --seconds 4 --json runs/bench/evaluation.json

gpu: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt 'jax[$(JAX_CUDA)]'
	PPL_TVAE_GPU=1 $(BIN)/python -m pytest tests/inference/test_batches.py tests/inference/test_graphs.py tests/inference/test_device.py
	$(BIN)/python -m benchmarks.gpu

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .jax_cache .pytest_cache .mypy_cache .ruff_cache
