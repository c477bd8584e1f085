# make setup | demo | test | demo-arcade | lint | format | clean | distclean
#
# Each command first installs what it needs into .venv; a second run finds that done.
#
# Variables:
#   PYTHON      the Python (3.11 or newer) that .venv is made with
#   PIP_ARGS    more arguments for pip, such as an index of your own. A machine without an NVIDIA
#               card can have the much smaller CPU build of torch (the plain one is several GB with
#               its CUDA libraries, and works without a card too):
#                 make setup PIP_ARGS="--extra-index-url <the CPU index that pytorch.org names>"
#   TORCH_SPEC  torch itself, where it should come from elsewhere: TORCH_SPEC=./torch-....whl
#   JOBS        test processes (2); TEST_ARGS: more arguments for pytest

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PINS := projects/sa2va/pins.py
PIP_ARGS ?=
TORCH_SPEC ?=
JOBS ?= 2
TEST_ARGS ?=

# Operators are compiled at first use: at installation they would need a CUDA toolkit.
export DS_BUILD_OPS := 0
ifeq ($(shell nvidia-smi -L >/dev/null 2>&1 && echo yes),)
export DS_ACCELERATOR ?= cpu
endif

.PHONY: help setup demo demo-arcade test lint format clean distclean

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

setup: $(STAMP)

# The stamp is written last, so that a half-finished installation is not taken for a finished one.
$(STAMP): setup.py Makefile $(PINS)
	@rm -f $(STAMP)
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  printf '%s\n' "found: no Python 3.11 or newer (PYTHON=$(PYTHON))" \
	    "  expected: Python 3.11 or newer" \
	    "  what to do: install it, or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PY) -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV) || { \
	  printf '%s\n' "found: $(PYTHON) cannot make a virtual environment" \
	    "  expected: a Python with the modules venv and ensurepip" \
	    "  what to do: install the package python3.11-venv, or: make setup PYTHON=..." >&2; exit 2; }
	$(PY) -m pip install $(PIP_ARGS) $(TORCH_SPEC) -e '.[dev]'
	$(PY) -m pip install $(PIP_ARGS) --no-deps $$($(PY) $(PINS) NO_DEPS)
	@# opencv-python needs the system's libGL; where there is none, its headless twin takes its place.
	@$(PY) -c 'import cv2' 2>/dev/null || $(PY) -m pip install $(PIP_ARGS) --no-deps \
	  --force-reinstall $$($(PY) $(PINS) REQUIRED | tr ' ' '\n' \
	  | sed -n 's/^opencv-python==/opencv-python-headless==/p')
	@$(PY) -c 'import cv2, torch; print("installed: torch", torch.__version__)'
	@touch $(STAMP)

# Folder of the ARCADE frames: train/, val/, test/.
ARCADE_ROOT ?= ../shared/data/arcade/syntax

demo: $(STAMP)
	$(PY) tools/run_demo.py

demo-arcade: $(STAMP)
	$(PY) tools/run_demo.py --arcade "$(ARCADE_ROOT)"

# A file's tests share what they set up, so one process runs them all (xdist 3.8 ignores its own
# groups under pytest 9.2). In the order of their names, or the longest files would come last.
# One thread each, or several processes on few cores wait for each other.
test: export OMP_NUM_THREADS ?= 1
test: lint
	$(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(TEST_ARGS)

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(STAMP)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
