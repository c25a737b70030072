# One command each. `make demo` and `make test` need nothing but Python >= 3.11 and make:
# they create a virtual environment, install what they use and run.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
WORKERS ?= 2

.PHONY: help demo test test-gpu test-cudnn test-native test-kernels test-faults fuzz lint types docs bench clean

help:
	@echo "make demo      tune ResNet-50 for this machine, filter a photograph, write pictures to demo-output/"
	@echo "make test      the whole test suite"
	@echo "make test-gpu  the tests that need a CUDA device (installs CuPy and cuDNN; CUDA=cuda13 for drivers of CUDA 13)"
	@echo "make test-cudnn  cuDNN's plans for a device that is not there (installs cuDNN: 0.8 GB)"
	@echo "make test-native  every config of the generated kernels, also under sanitizers, and for AArch64 in QEMU"
	@echo "make test-kernels  CUDA kernels: every config through NVRTC, every problem of the suite on the host"
	@echo "make test-faults  sixteen processes on one cache, a hundred kills, damage at two thousand places"
	@echo "make fuzz      10,000 random calls, every implementation forced in turn"
	@echo "make lint      ruff and mypy --strict"
	@echo "make docs      write the generated pages of docs/reference"
	@echo "make bench     dispatch overhead (pytest-benchmark)"
	@echo "make clean     remove the environment and what was generated"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "autoconv needs Python 3.11 or later")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[cpu,report]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/autoconv tune resnet50
	$(BIN)/python examples/demo.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS)

CUDA ?= cuda12
test-gpu: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --editable '.[dev,$(CUDA)]'
	$(BIN)/python -m pytest -m gpu tests/gpu

# the newest cuDNN seen to plan without a driver; 9.28 (of CUDA 12) does not
CUDNN ?= nvidia-cudnn-cu13==9.19.0.56
test-cudnn: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet 'nvidia-cudnn-frontend>=1.27,<1.29' '$(CUDNN)'
	$(BIN)/python -m pytest -m slow tests/cuda/test_cudnn_deviceless.py

test-native: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) -m slow tests/native

test-kernels: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) -m slow tests/cuda/test_nvrtc.py tests/cuda/test_conformance.py

test-faults: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow tests/cache tests/load

FIRST ?= 0
COUNT ?= 10000
fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.fuzz --first $(FIRST) --count $(COUNT)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py

bench: $(VENV)/.dev
	$(BIN)/python -m pytest benchmarks/bench_dispatch.py --benchmark-only

clean:
	rm -rf $(VENV) demo-output .mypy_cache .pytest_cache .ruff_cache .hypothesis
