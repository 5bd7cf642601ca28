# `make demo` and `make test` need nothing but Python 3.11 to 3.13: they make the virtual environment themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Most of a test is tracing, on one core; more than four processes fill the memory of a laptop. In the order of their
# paths the last files are short ones, and no process ends long after the others.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all test-beam test-notebooks notebooks check docs format clean

demo: $(INSTALLED)
	$(BIN)/overfeat demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not long" $(PARALLEL)

test-all: $(INSTALLED)
	$(BIN)/python -m pytest $(PARALLEL)

# Beam and TensorFlow agree on fewer versions of protobuf than TensorFlow alone: an environment of its own.
test-beam:
	test -x $(VENV)-beam/bin/python || $(PYTHON) -m venv $(VENV)-beam
	$(VENV)-beam/bin/python -m pip install --disable-pip-version-check --progress-bar off -e ".[beam]" pytest
	$(VENV)-beam/bin/python -m pytest -W default tests/serving/test_batch_verb.py

# On copies in build/, where they leave their data and runs; their commands need `overfeat` on the path.
test-notebooks: $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -e ".[demo,notebooks]"
	rm -rf build/notebooks && mkdir -p build/notebooks && cp docs/notebooks/*.ipynb build/notebooks
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest -W default --nbmake --overwrite build/notebooks

# New outputs for the site.
notebooks: test-notebooks
	$(BIN)/jupyter nbconvert --to notebook --inplace --coalesce-streams build/notebooks/*.ipynb
	cp build/notebooks/*.ipynb docs/notebooks

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/overfeat_tf/test_imports.py

# Into build/site; dead links are errors.
docs: $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -e ".[docs]"
	$(BIN)/mkdocs build --strict

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and 'Python 3.11, 3.12 or 3.13 is needed: TensorFlow has wheels for no other; make PYTHON=python3.13')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -e ".[dev]"
	touch $@

clean:
	rm -rf demo build dist *.egg-info
