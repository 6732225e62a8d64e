# Two commands do everything on a fresh machine with Python >= 3.11, each in an environment of its own:
#   make run     train, measure and compare the bundled recipes (quick preset), print the table and the report's path
#   make test    the test suite
# The rest is for people who change the code: make install, format, lint, types, test-slow, test-lowest, check, bench,
# compat.

PYTHON ?= python3
PACKAGES = losses students scores lightning_plugins tradeoff recipes
RUN = .venv
DEV = .venv-dev
LOWEST = .venv-lowest
LOWEST_TORCH ?= 2.5.0
OUT ?= runs

# Tiny models: one thread each is faster than several that wait for one another.
export OMP_NUM_THREADS = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: run test test-slow test-lowest install format lint types check bench compat clean

run: $(RUN)/installed
	$(RUN)/bin/legibility sweep stdlib_lm digits --preset quick --out $(OUT)
	$(RUN)/bin/legibility compare $(OUT)

test: $(DEV)/installed
	$(DEV)/bin/python -m pytest -n auto --dist loadfile -m "not slow" tests

test-slow: $(DEV)/installed
	$(DEV)/bin/python -m pytest -n auto --dist loadfile -m slow tests

# The callbacks with the lowest versions that pyproject.toml allows. torch 2.5.0 comes with CUDA (3 GB) where pip has no CPU build of
# it at hand; LOWEST_TORCH=2.13.0 takes the one of constraints.txt.
test-lowest: $(LOWEST)/installed-$(LOWEST_TORCH)
	$(LOWEST)/bin/python -m pytest -n auto --dist loadfile -m "not slow" tests/lightning_plugins

install: $(DEV)/installed

format: $(DEV)/installed
	$(DEV)/bin/ruff check --fix .
	$(DEV)/bin/ruff format .

lint: $(DEV)/installed
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .

types: $(DEV)/installed
	$(DEV)/bin/mypy

check: lint types test

bench: $(DEV)/installed
	$(DEV)/bin/python benchmarks/step_overhead.py
	$(DEV)/bin/python benchmarks/compare_scale.py

# The programs of other people that take a callback; needs the folder `shared/` beside the checkout.
compat:
	for callback in legibility l1 report zero; do \
		$(PYTHON) ../shared/compat/run.py --callback $$callback 'core_*' 'demos_*' || exit 1; done

$(RUN)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(RUN)
	$(RUN)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(RUN)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[recipes]'
	touch $@

$(DEV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(DEV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	mkdir -p build/types/legibility
	for name in $(PACKAGES); do ln -sfn ../../../$$name build/types/legibility/$$name; done
	touch $@

$(LOWEST)/installed-$(LOWEST_TORCH): pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints-lowest.txt torch==$(LOWEST_TORCH)
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints-lowest.txt torch==$(LOWEST_TORCH) --editable '.[test]'
	touch $@

clean:
	rm -rf $(RUN) $(DEV) $(LOWEST) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
