# Everything runs in a virtual environment that `make setup` makes. What you may set:
#   PY=python3.12                 the Python to make it with
#   VENV=.venv                    where it goes
#   TORCH='torch==2.8.0'          another torch; TORCH_FROM='--index-url ...' where from
#   EXTRAS=cuda13,dev             the package's extras (pyproject.toml); demo takes cpu,demo in place of dev
#   WORKERS=2                     test processes

PY      ?= python3
VENV    ?= .venv
WORKERS ?= 2
BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check
INSTALL ?= $(PIP) install
SHELL   := /bin/bash
comma   := ,

# Package metadata cannot ask for a GPU, so torch is chosen here, before the package. Without a GPU it is the CPU build:
# 200 MB and not 3 GB. `--retries 0`: a machine that cannot reach the index falls back to PyPI at once. With one it is
# PyPI's for the driver's CUDA: from 2.11 on that is 13, which a driver for 12 cannot run.
CUDA := $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: \([0-9]*\).*/\1/p' | head -1)
ifeq ($(CUDA),)
TORCH      ?= torch==2.13.0
TORCH_FROM ?= --extra-index-url https://download.pytorch.org/whl/cpu --retries 0 --timeout 10
EXTRAS     ?= dev
else
TORCH      ?= torch>=2.6$(if $(filter 12,$(CUDA)),$(comma)<2.11)
TORCH_FROM ?=
EXTRAS     ?= $(if $(filter 12,$(CUDA)),cuda12,cuda13),dev
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-cuda sanitize soak check check-python check-kernels bench wheel clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name text; do \
	  printf '  make %-9s %s\n' "$$name" "$$text"; done

setup: $(VENV)/.ready ## make the virtual environment, with the CPU build of torch where there is no GPU

# Where all of it is there, that does; else a demo needs neither Ray nor what tests need.
demo: $(or $(wildcard $(VENV)/.ready),$(VENV)/.demo) ## convert a network, run it on a video, show what was saved (writes demo/)
	$(BIN)/deltaconvert demo --folder demo

# A file's tests run in one process, which compiles, exports and starts Ray once for all of them; in the order of the
# files, whose longest are not the last. Maps of 1 MB and more go back to the system: glibc would keep gigabytes.
BY_FILE := --dist loadfile --no-loadscope-reorder

test: setup ## run the tests, but for the slow ones and those that need a GPU
	MALLOC_MMAP_THRESHOLD_=1000000 $(BIN)/python -m pytest -q -n $(WORKERS) $(BY_FILE) -m "not slow and not gpu"

test-cuda: setup ## run the tests that need a GPU; without one this fails
	DELTACONVERT_NEEDS_GPU=1 $(BIN)/python -m pytest -q -m gpu

sanitize: setup ## every kernel under compute-sanitizer; needs a GPU and the CUDA toolkit
	$(BIN)/python .ci/sanitize.py

soak: setup ## cameras come, go and misbehave for five minutes: outputs right, memory flat
	DELTACONVERT_SOAK_MINUTES=$${DELTACONVERT_SOAK_MINUTES:-5} $(BIN)/python -m pytest -q -s tests/faults/test_soak.py

check: check-python check-kernels ## ruff, mypy, the wheel's content, every CUDA source compiled, known vulnerabilities

check-python: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python .ci/check_wheel.py
	$(BIN)/python .ci/lock.py audit

check-kernels: setup
	$(BIN)/python .ci/compile_kernels.py

bench: setup ## time the converted networks against the dense ones on this CPU (installs onnxruntime and OpenVINO)
	$(PIP) install -q -c $(VENV)/constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/cpu.py

wheel: setup ## build the wheel into dist/
	@rm -rf dist
	$(BIN)/python .ci/check_wheel.py dist

clean: ## remove everything that make and the tests made
	rm -rf $(VENV) dist demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v '$(PY)' >/dev/null || { echo "There is no $(PY). Install Python 3.10 or newer, or: make $(MAKECMDGOALS) PY=/path/to/python"; exit 1; }
	@'$(PY)' -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PY) is $$('$(PY)' -V 2>&1), deltaconvert needs 3.10 or newer: make $(MAKECMDGOALS) PY=python3.12"; exit 1; }
	'$(PY)' -m venv '$(VENV)' || { echo "No virtual environment: on Debian and Ubuntu, apt install python3-venv"; rm -rf '$(VENV)'; exit 1; }

# Frozen after torch is in, so that nothing the package asks for can replace it; by the version that pip knows: PyPI's
# build for CUDA is 2.13.0 there and 2.13.0+cu130 in torch.__version__, which pip finds nowhere.
define install
	$(BIN)/python -c 'import torch' 2>/dev/null || $(INSTALL) $(TORCH_FROM) '$(TORCH)'
	$(BIN)/python -c 'import importlib.metadata as had; print("torch==" + had.version("torch"))' > $(VENV)/constraints.txt
	$(INSTALL) -c $(VENV)/constraints.txt -e '.[$(1)]'
	@$(BIN)/python -c 'import torch; gpu = torch.cuda.is_available(); print("torch", torch.__version__, "with a GPU" if gpu else "on the CPU")'
	@touch $@
endef

$(VENV)/.ready: pyproject.toml | $(BIN)/python
	$(call install,$(EXTRAS))

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(call install,$(subst dev,cpu$(comma)demo,$(EXTRAS)))
