# Set-up needs Python 3.11 or newer and make; `make PYTHON=python3.12 train` picks another one.
PYTHON ?= python3
WORKDIR ?= runs/digits
BIN := .venv/bin
READY := .venv/.ready

.PHONY: train test test-slow lint typecheck

train: $(READY)
	$(BIN)/python -m resnest_jax.train --config=configs/digits.py --workdir=$(WORKDIR)

test: $(READY)
	$(BIN)/python -m pytest -n auto

test-slow: $(READY)
	$(BIN)/python -m pytest -n auto -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(READY)
	$(BIN)/pyright --pythonpath $(BIN)/python

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[train,detection,dev]'
	@touch $@
