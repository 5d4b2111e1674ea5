# Two commands set everything up on a fresh machine (Python >= 3.10, git, make, a package registry):
#   make demo    runs the main job: pFedST across synthetic sites, in a minute or two, without a model hub
#   make test    runs the tests
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo demo-hospitals test coverage lint types check check-faults check-kernels check-wheel check-docs \
	check-hospitals bench docs clean

demo: $(READY)
	$(BIN)/pfedst fit --config configs/demo.yaml

# three hospitals on this machine, over Flower with TLS and registered keys, in a few minutes; needs Python 3.11
demo-hospitals: $(READY)
	rm -rf runs/hospitals
	$(BIN)/python -m pfedst.testing.hospitals runs/hospitals

test: $(READY)
	$(BIN)/pytest

# all tests once more: to follow every line costs three quarters of their time again
coverage: $(READY)
	$(BIN)/pytest -m "not wheel and not docs and not hospitals" --cov --cov-report=term --cov-fail-under=97

# whole runs with forged replies, hostile or dying clients, damaged files, odd images and sites
check-faults: $(READY)
	$(BIN)/pytest -m faults tests/faults

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# one process, so that the wheel is built once
check-wheel: $(READY)
	$(BIN)/pytest -n 0 -m wheel tests/test_packaging.py

# The site without a warning, its HTML, and every page that can run; reports and pages in a browser, where chromium,
# chromedriver and npm are.
check-docs: $(READY)
	npm install --silent --no-save --no-package-lock --prefix $(VENV) axe-core@4 || true
	$(BIN)/pytest -n 0 -m docs tests/docs

# Flower's own processes on loopback, and a Ray cluster of two machines, in about five minutes; needs Python 3.11
check-hospitals: $(READY)
	$(BIN)/pytest -n 0 -m hospitals tests/deployment/test_hospitals.py tests/transport/test_ray_cluster.py

check: test lint types coverage check-faults check-kernels check-wheel check-docs check-hospitals

# The numeric tests once more, with the kernels of older processors and with this machine's own: the last digits of sums
# differ between them, and no test may depend on those. Tests that start processes are left out.
KERNELS ?= default avx2 own
default := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2
avx2    := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
own     :=
NUMERIC := tests/test_kernels.py tests/adapters tests/encoders tests/evaluation tests/methods/test_losses.py \
           tests/methods/test_merging.py tests/baselines/test_classic.py tests/baselines/test_clip_methods.py \
           tests/baselines/test_reference.py tests/client/test_training.py tests/server/test_coordinator.py \
           tests/transport/test_processes.py tests/data/cache
STARTS_PROCESSES := in_processes or two_processes or in_a_worker or to_a_process or killed or dies

check-kernels: $(addprefix kernels-,$(KERNELS))

$(addprefix kernels-,default avx2 own): kernels-%: $(READY)
	$($*) $(BIN)/pytest -n 2 $(NUMERIC) -k "not ($(STARTS_PROCESSES))"

# benchmarks that need images and weights (audit, epoch, four_sites): see benchmarks/README.md
bench: $(READY)
	for name in step round cache pixels clients sites scale wire fuzz simulator false_claims; do $(BIN)/python benchmarks/$$name.py run || exit 1; done
	for name in kills mutations drops attackers memory; do \
		OMP_NUM_THREADS=1 $(BIN)/python benchmarks/faults.py run $$name || exit 1; done
	$(BIN)/python benchmarks/comparison.py run demo
	$(BIN)/python benchmarks/render.py

docs: $(READY)
	$(BIN)/pfedst methods --docs docs/methods
	$(BIN)/python -m pfedst.cli.lightning_page > docs/lightning.md
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist *.egg-info

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=23.1"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(READY)
