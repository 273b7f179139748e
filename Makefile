# The two commands: `make sweep` and `make test`. Everything else serves development.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: sweep test test-slow lint types format constraints clean

sweep: $(VENV)/.installed
	$(BIN)/python experiments/capacity_sweep.py

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 -m slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/pyright

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# One resolution for Python 3.11 to 3.13, with hashes and without addresses.
constraints: $(VENV)/.installed-dev
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --no-emit-index-url --no-emit-find-links --upgrade --quiet \
	  --extra dask --extra data --extra flows --extra table --extra docs --extra dev pyproject.toml -o constraints.txt

clean:
	rm -rf $(VENV) build dist

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("amortgap needs Python 3.11 or newer: make PYTHON=python3.x" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# pip reads hashes in a constraints file as a demand that every requirement carry one, which an editable install cannot
# meet. So the core takes its exact versions from the file, and the development set is the whole file, hashes checked.
$(VENV)/constraints-versions.txt: constraints.txt | $(VENV)/bin/python
	sed -e 's/ *\\$$//' -e '/^ *--hash/d' constraints.txt > $@

$(VENV)/.installed: pyproject.toml $(VENV)/constraints-versions.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints-versions.txt -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@ $(VENV)/.installed
