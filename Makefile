# make demo and make test set everything up themselves, in .venv
PYTHON ?= python3
BIN := .venv/bin
# An environment that forbids bytecode compiles every library anew at every start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-slow lint format bench clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --upgrade pip
	$(BIN)/python -m pip install -qq --no-compile -c constraints.txt -e ".[hub,offline,train,dev]"
	touch $@

demo: setup
	$(BIN)/nncift demo

test: setup
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow or not slow" --timeout=1200

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python benchmarks/speed.py

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache
