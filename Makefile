# make demo: the whole of it on two CPU cores · make test: the tests · make check: lint, types, layers, docs
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python -m
UV := 0.13.8
# two workers with one thread each: more would fight over two cores
PYTEST := OMP_NUM_THREADS=1 $(RUN) pytest -n 2 --dist worksteal
FAST := not slow and not gpu and not network and not demo
SLOW := slow and not gpu and not network

# an empty value: bytecode is kept. Without it every process compiles torch and this package anew, 20 seconds of a slow core
export PYTHONDONTWRITEBYTECODE :=

STUDIES := study-page4d study-dept3r study-dgs-lrm study-siren-pose

.PHONY: setup demo test test-slow test-demo coverage $(STUDIES) study-pad3r reference check lock clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "four_d needs Python 3.11 to 3.13, and $(PYTHON) is another; say which: make PYTHON=python3.12 …"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "$(PYTHON) makes no virtual environments here; on Debian: apt-get install python3-venv"; exit 2; }
	@test -x $(BIN)/uv || $(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV)
	$(BIN)/uv pip sync --quiet --require-hashes --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python --editable .
	@touch $@

# two threads that wait without spinning: beside other work on the same cores, spinning costs four times the time
demo: setup
	OMP_WAIT_POLICY=passive $(BIN)/python examples/demo.py

test: setup
	$(PYTEST) -m "$(FAST)"

test-slow: setup
	$(PYTEST) -m "$(SLOW)"

# what `make demo` has made
test-demo: setup
	$(RUN) pytest -m demo

# half as long again as `make test`
coverage: setup
	$(PYTEST) -m "$(FAST)" --cov --cov-report=term --cov-fail-under=85

# ONLY=variant SEEDS=0,1: those runs again; otherwise what has no raw line yet
$(STUDIES): study-%: setup
	$(BIN)/python benchmarks/study.py $* $(if $(ONLY),--only $(ONLY)) $(if $(SEEDS),--seeds $(SEEDS))

# PIECES=n: so many pieces of 15 minutes; beside it, on another core: python benchmarks/reference.py --worlds
reference: setup
	$(BIN)/python benchmarks/reference.py $(if $(PIECES),--pieces $(PIECES))

# ONLY=rung: that one alone
study-pad3r: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/pad3r.py $(if $(ONLY),--only $(ONLY))

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/pyright -p benchmarks
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# the lock names no index; hashes make it the same everywhere
lock:
	$(BIN)/uv pip compile pyproject.toml --extra synth --extra viz --extra video --extra hdf5 --extra remote --extra encoder --extra hub --extra tensorboard --extra onnx --extra ray --group dev --universal \
	  --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet -o requirements.lock

clean:
	rm -rf $(VENV) runs site dist .pytest_cache .ruff_cache .hypothesis
