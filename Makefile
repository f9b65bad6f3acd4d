# The README's two commands are `make demo` and `make test`; both work on a fresh machine with Python 3.11.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export OPENVINO_TELEMETRY_OPT_OUT := 1
# Where TensorRT-RTX can be installed, `make test` fails without it, lest its builds go untested in silence;
# `make test AKD_REQUIRE_RTX=0` tests the rest.
ifeq ($(shell uname -sm),Linux x86_64)
export AKD_REQUIRE_RTX ?= 1
endif

.PHONY: demo test lint format install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	# torch first and pinned: another package asking for a newer one would pull gigabytes of CUDA libraries
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[cpu,openvino,test]'
	# proprietary and for x86_64 only: everything but the TensorRT-RTX builds works without it
	$(BIN)/pip install --quiet --constraint constraints.txt tensorrt-rtx \
	  || echo 'tensorrt-rtx could not be installed: TensorRT-RTX builds will be reported as unavailable'
	touch $@

demo: install
	$(BIN)/akd-deploy doctor
	$(BIN)/akd-deploy demo --output demo --resume

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m slipcover -m pytest -n 2 --dist loadgroup

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf demo build dist .pytest_cache .mypy_cache .ruff_cache
