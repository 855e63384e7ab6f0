# Set-up needs Python 3.11 or newer and make; `make PYTHON=python3.12 train` picks another one.
PYTHON ?= python3
WORKDIR ?= runs/digits
BIN := .venv/bin
READY := .venv/.ready

.PHONY: train test lint

train: $(READY)
	$(BIN)/python -m resnest_jax.train --config=configs/digits.py --workdir=$(WORKDIR)

test: $(READY)
	$(BIN)/python -m pytest -n auto

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@
