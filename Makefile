# `make bench` and `make test` do everything from an empty clone: environment, pinned packages, native build.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := Makefile pyproject.toml setup.py CMakeLists.txt constraints.txt $(shell find csrc -type f)

.DEFAULT_GOAL := help
.PHONY: help setup bench test sanitize lint gpu-check clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.ready  ## the environment, and the native modules

$(VENV)/.ready: $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed; found $$($(PYTHON) --version). Set PYTHON=/path/to/python3"; exit 2; }
	@# A venv that failed half-way has a python and no pip.
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
		{ echo "no virtual environment: install Python's venv (Debian and Ubuntu: apt install python3-venv)"; exit 2; }
	$(PIP) install -q -c constraints.txt pip setuptools wheel pybind11 cmake ninja torch numpy
	@# CUDA builds of torch bring the Triton they were built with; others get the pinned one, to compile kernels ahead of time.
	$(PIP) show -q triton 2>/dev/null || $(PIP) install -q triton==3.9.0
	$(PIP) install -q -c constraints.txt --no-build-isolation -e '.[test]'
	@# A pure-Python install works too, slower: say which one this is.
	@$(BIN)/jepa-kernels info | grep '^native '
	touch $@

bench: setup  ## the operators and a training step against PyTorch's own; writes runs/<id>/report.html
	$(BIN)/jepa-kernels bench run --quick $(BENCH)

test: setup lint  ## every test that this machine can run
	$(BIN)/python -m pytest $(TESTS)

sanitize: setup  ## the native CPU kernels under the address and undefined-behaviour sanitizers (minutes of compilation)
	$(BIN)/python -m pytest -m sanitizer tests/native

lint: setup  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

# On the GPU machine's own Python, which has torch and triton: nothing is downloaded.
gpu-check:  ## on a machine with an NVIDIA GPU: build, GPU tests, benchmark, sanitizer, within BUDGET; results in OUTPUT
	@$(PYTHON) -c 'import torch, sys; sys.exit(0 if torch.cuda.is_available() else 5)' || { echo "gpu-check needs torch and an NVIDIA GPU in $(PYTHON); make test is what runs without one"; exit 5; }
	@# Without native modules, to have the command: the check builds them with a log and within its time.
	$(PYTHON) -c 'import jepa_kernels' 2>/dev/null || JEPA_KERNELS_BUILD_CPU=off JEPA_KERNELS_BUILD_CUDA=off $(PYTHON) -m pip install -q --no-deps --no-build-isolation --no-index -e .
	$(PYTHON) -m jepa_kernels.cli gpu-check --budget $(or $(BUDGET),9m) --output $(or $(OUTPUT),runs/gpu-check)

clean:  ## removes what the other targets made
	rm -rf $(VENV) build dist runs python/jepa_kernels/_c*.so *.egg-info python/*.egg-info
