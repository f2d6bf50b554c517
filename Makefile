# Everything runs in a virtual environment of its own; nothing but Python >= 3.11 is needed.
PYTHON ?= python3
VENV ?= .venv
# A file of .ci/locks says what is installed; without it, it is the newest that there is.
LOCK ?=
WITH ?= test
RUN = $(VENV)/bin/python -m
DEMO := runs/demo
# The versions that are supported, from the first to the last, and a Python for each.
SETS := oldest-3.11 newest-3.13
# What leans most on the versions of others; TESTS=tests for all.
TESTS ?= $(shell sed '/^\#/d' .ci/selection.txt)
# Extras that tests need and the others do not, and the tests that need them.
EXTRAS := export,docs,torch
EXTRA_TESTS := tests/interop tests/docs/test_docs_site.py tests/files/test_torch_files.py
# Tools of an environment of their own: sft_jax does not need what they need.
TOOLS := build/tools

.PHONY: install test slow nightly lint demo benchmark fuzz faults notebooks docs clean
.PHONY: $(SETS) sets versions extras locks wheel audit licences

install: $(VENV)/installed

$(VENV)/installed: setup.cfg pyproject.toml $(LOCK)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --upgrade pip
ifdef LOCK
	$(RUN) pip install --quiet --no-compile --require-hashes --requirement $(LOCK)
	$(RUN) pip install --quiet --no-deps --no-build-isolation --editable .
	$(RUN) pip check
else
	$(RUN) pip install --quiet --no-compile --editable '.[$(WITH)]'
endif
	touch $@

lint: install
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

test: lint
	$(RUN) pytest --numprocesses=auto --dist=loadfile

# What takes long beside tests that show nearly the same, as the rest of a matrix does.
slow: install
	$(RUN) pytest --numprocesses=auto --dist=loadfile -m slow

# All that there is to try, in about two and a half hours on two cores.
nightly: test slow extras $(SETS) fuzz faults wheel

sets:
	@echo $(SETS)

# Tests that a set of versions may break, with that set.
$(SETS):
	python=$$(.ci/python $(lastword $(subst -, ,$@))) && \
	$(MAKE) versions PYTHON=$$python VENV=build/$@ LOCK=.ci/locks/$@.txt

versions: install
	$(RUN) pytest --numprocesses=auto --dist=loadfile $(TESTS)

# Tests that are skipped where an extra is missing; here none may be.
extras:
	$(MAKE) install VENV=build/extras WITH=test,$(EXTRAS)
	NO_SKIPS=1 NO_MKDOCS_2_WARNING=1 build/extras/bin/python -m pytest \
		--numprocesses=auto --dist=loadfile $(EXTRA_TESTS)

locks: $(TOOLS)/installed
	for set in $(SETS); do \
		UV_CUSTOM_COMPILE_COMMAND='make locks' $(TOOLS)/bin/uv pip compile --quiet --upgrade \
			--resolution=$$(test $${set%-*} = oldest && echo lowest-direct || echo highest) \
			--python-version=$${set#*-} --generate-hashes --no-annotate --extra=test \
			--output-file=.ci/locks/$$set.txt setup.cfg || exit; \
	done

# In an environment with nothing but the wheel and what it asks for, away from the sources.
wheel: $(TOOLS)/installed
	rm -rf dist build/wheel && mkdir -p build/wheel
	$(TOOLS)/bin/python -m build --outdir=dist .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet dist/*.whl
	cp .ci/draw_inputs.py build/wheel && cd build/wheel && \
	venv/bin/python -m sft_jax.train --config=configs/synthetic.py --workdir=run && \
	venv/bin/python -m sft_jax.evaluate --workdir=run && \
	venv/bin/python draw_inputs.py configs/synthetic.py mine.npz && \
	venv/bin/python -m sft_jax.predict --workdir=run --input=mine.npz --output=scores.npz

# Asks a database of advisories, so it needs more of the network than an index of packages.
audit: $(TOOLS)/installed
	for set in $(SETS); do \
		$(TOOLS)/bin/python -m pip_audit --strict --progress-spinner=off --require-hashes \
			--disable-pip --requirement=.ci/locks/$$set.txt || exit; \
	done

licences: install
	mkdir -p build
	$(VENV)/bin/python .ci/licences.py > build/licences.md
	mv build/licences.md docs/licences.md

$(TOOLS)/installed:
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --upgrade build pip-audit uv
	touch $@

demo: install
	$(RUN) sft_jax.prepare --config=configs/smartwatch.py
	$(RUN) sft_jax.train --config=configs/smartwatch.py --workdir=$(DEMO)
	$(RUN) sft_jax.evaluate --workdir=$(DEMO)
	$(RUN) sft_jax.report --workdir=$(DEMO)

benchmark: install
	$(RUN) sft_jax.benchmark

# What strangers' files can do to the readers: ten minutes for each of them.
fuzz: install
	$(RUN) tests.fuzz --seconds=600 --jobs=2 --json=docs/results/fuzz.json --page=docs/fuzz.md

# Kills and other faults; adds to the results that are there, remove the file to begin again.
faults: install
	$(RUN) tests.faults --kills=300 --jobs=2 --json=docs/results/faults.json --page=docs/faults.md

notebooks: install
	$(VENV)/bin/python notebooks/execute.py

# The theme, maintained until May 2027, says so at every build unless told not to.
docs: install
	$(RUN) pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict --config-file=docs/site/mkdocs.yml

clean:
	rm -rf $(VENV) build dist *.egg-info
