# Two commands set everything up: `make demo` and `make test`. Both are quick the second time.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check slow wheel lock clean

demo: $(READY)
	$(BIN)/carbrand demo --dir demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

# Lint, formatting and types.
check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The tests that take minutes.
slow: $(READY)
	$(BIN)/python -m pytest -m slow -n 2 --dist worksteal

# A wheel, installed into its own environment far from the sources, runs the demo.
wheel: $(READY)
	PYTHON=$(PYTHON) tests/wheel.sh

# Versions for every supported Python, chosen by a tool from setup.py.
lock:
	$(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/pip install -q uv
	$(VENV)/lock/bin/uv pip compile setup.py --extra all --extra dask --extra dev --universal --python-version 3.11 \
	  --no-header --no-annotate -q -o requirements.lock

$(READY): requirements.lock setup.py
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "carbrand needs Python 3.11 to 3.13. Run: make PYTHON=python3.12 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -r requirements.lock
	$(BIN)/pip install -q --no-deps -e .
	touch $(READY)

clean:
	rm -rf $(VENV) build dist *.egg-info demo
