# make demo and make test set everything up themselves, in .venv
PYTHON ?= python3
BIN := .venv/bin
# An environment that forbids bytecode compiles every library anew at every start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-slow test-portable lint format bench docs dist sbom lock audit hostile clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --upgrade pip
	$(BIN)/python -m pip install -qq --no-compile -c constraints.txt -e ".[hub,offline,train,dev]"
	touch $@

demo: setup
	$(BIN)/nncift demo

test: setup
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow or not slow" --timeout=1200

# Whatever compares numbers, with the kernels of other processors: plain, of AVX2, and rounding otherwise for every shape.
NUMERIC := tests/teachers tests/student tests/selection tests/evaluation tests/generation tests/demo tests/device \
  tests/distributed/test_memory.py tests/finetune/test_training.py tests/finetune/test_trainers.py tests/test_blocks.py tests/test_calculation.py \
  tests/test_embeddings.py tests/test_encode.py tests/test_explain.py tests/test_lm.py tests/test_memory.py tests/test_probe.py \
  tests/test_behaviour.py tests/test_reselect.py tests/test_rows.py tests/test_students.py tests/test_subtasks.py

test-portable: setup
	ATEN_CPU_CAPABILITY=default OPENBLAS_CORETYPE=Prescott MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41 OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -n 2 --dist worksteal $(NUMERIC)
	ATEN_CPU_CAPABILITY=avx2 OPENBLAS_CORETYPE=Haswell MKL_CBWR=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -n 2 --dist worksteal $(NUMERIC)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -p tests.rounding $(NUMERIC)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python benchmarks/speed.py --write

# The documentation as a site, in site/; a broken link or an unknown name fails.
docs: .venv/.docs-ready
	$(BIN)/zensical build --strict --clean

.venv/.docs-ready: .venv/.ready
	$(BIN)/python -m pip install -qq --no-compile -c constraints.txt -e ".[docs]"
	touch $@

# Wheel and source archive, in dist/, by tools whose hashes are known; then the wheel alone, in a fresh environment, runs the demo.
dist: setup .venv/.tools-ready
	rm -rf dist
	.venv/tools/bin/python -m build --no-isolation
	.venv/tools/bin/twine check --strict dist/*
	$(BIN)/python -m pytest -m slow --timeout=1200 tests/test_distribution.py

# A bill of materials (CycloneDX) of nncift and all that a plain installation brings, in build/sbom.cdx.json.
sbom: .venv/.tools-ready
	rm -rf .venv/sbom && mkdir -p build
	$(PYTHON) -m venv --without-pip .venv/sbom
	.venv/tools/bin/python -m pip --python .venv/sbom/bin/python install -qq --no-compile -c constraints.txt .
	.venv/tools/bin/cyclonedx-py environment .venv/sbom/bin/python --pyproject pyproject.toml --mc-type library \
	  --output-reproducible --of JSON -o build/sbom.cdx.json

.venv/.tools-ready: requirements/tools.txt
	$(PYTHON) -m venv .venv/tools
	.venv/tools/bin/python -m pip install -qq --no-compile --require-hashes -r requirements/tools.txt
	touch $@

# The tools of a release with the hashes of all files that they may be installed from; asks the network.
# By the lowest Python, which needs all that others need, and more.
lock: setup
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "make lock needs Python 3.11: PYTHON=python3.11")'
	$(PYTHON) -m venv .venv/lock
	.venv/lock/bin/python -m pip install -qq --no-compile pip-tools
	.venv/lock/bin/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --upgrade --no-emit-index-url \
	  --no-emit-trusted-host --no-emit-find-links --no-header --no-annotate -o requirements/tools.txt requirements/tools.in

# Hostile files, one after the other; the table stands in docs/reliability.md.
hostile: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/hostile.py --write

# Known weaknesses of the versions installed here, by the advisories of PyPI; asks the network. What cannot be audited fails.
audit: .venv/.audit-ready
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+.*//; s/ @ .*//' > .venv/audit.txt
	.venv/audit/bin/pip-audit --strict --disable-pip --no-deps -r .venv/audit.txt

.venv/.audit-ready: .venv/.ready
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install -qq --no-compile pip-audit
	touch $@

clean:
	rm -rf .venv build dist site .cache .mypy_cache .ruff_cache .pytest_cache
