# Everything runs in a virtual environment of its own; nothing but Python >= 3.11 is needed.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python -m
DEMO := runs/demo

.PHONY: install test lint demo benchmark docs clean

install: $(VENV)/installed

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --upgrade pip
	$(RUN) pip install --quiet --editable '.[test]'
	touch $@

lint: install
	$(RUN) ruff check .
	$(RUN) ruff format --check .

test: lint
	$(RUN) pytest --numprocesses=auto --dist=loadfile

demo: install
	$(RUN) sft_jax.prepare --config=configs/smartwatch.py
	$(RUN) sft_jax.train --config=configs/smartwatch.py --workdir=$(DEMO)
	$(RUN) sft_jax.evaluate --workdir=$(DEMO)
	$(RUN) sft_jax.report --workdir=$(DEMO)

benchmark: install
	$(RUN) sft_jax.benchmark

# The theme, maintained until May 2027, says so at every build unless told not to.
docs: install
	$(RUN) pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict --config-file=docs/site/mkdocs.yml

clean:
	rm -rf $(VENV) build dist *.egg-info
