# Two commands set everything up on a fresh machine (Python >= 3.10, git, make, a package registry):
#   make demo    runs the main job: pFedST across synthetic sites, in a minute, without a model hub
#   make test    runs the tests
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test lint types check-wheel check bench docs clean

demo: $(READY)
	$(BIN)/pfedst fit --config configs/demo.yaml

test: $(READY)
	$(BIN)/pytest --cov --cov-report=term --cov-fail-under=90

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# one process, so that the wheel is built once
check-wheel: $(READY)
	$(BIN)/pytest -n 0 -m wheel tests/test_packaging.py

check: test lint types check-wheel

# what needs images and weights of one's own (audit, epoch, four_sites) is told in benchmarks/README.md
bench: $(READY)
	for name in step round cache clients wire fuzz simulator; do $(BIN)/python benchmarks/$$name.py run || exit 1; done
	for name in kills mutations drops attackers memory; do \
		OMP_NUM_THREADS=1 $(BIN)/python benchmarks/faults.py run $$name || exit 1; done
	$(BIN)/python benchmarks/comparison.py run demo
	$(BIN)/python benchmarks/render.py

docs: $(READY)
	$(BIN)/pfedst methods --docs docs/methods
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist *.egg-info

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=23.1"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(READY)
