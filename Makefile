# Targets run in a virtual environment; all they need is Python >= 3.11.
PYTHON ?= python3
VENV ?= .venv
# A lock file of .ci/locks to install from; the newest versions without one.
LOCK ?=
WITH ?= test
RUN = $(VENV)/bin/python -m
DEMO := runs/demo
# The oldest and the newest supported versions, each with its Python.
SETS := oldest-3.11 newest-3.13
# Tests that depend most on the versions of dependencies; TESTS=tests runs all.
TESTS ?= $(shell sed '/^\#/d' .ci/selection.txt)
# Extras that some tests need, and these tests.
EXTRAS := export,docs,torch
EXTRA_TESTS := $(addprefix tests/interop/,test_torch_sft.py test_against.py test_export.py \
	test_reference_weights.py) tests/docs/test_docs_site.py tests/files/test_torch_files.py \
	tests/docs/test_commands.py::test_every_command_of_an_extra_runs
# Tools with dependencies of their own, in a separate environment.
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

# Long tests whose subject `make test` covers with fewer cases.
slow: install
	$(RUN) pytest --numprocesses=auto --dist=loadfile -m slow

# Everything, in about two and a half hours on two cores.
nightly: test slow extras $(SETS) fuzz faults wheel

sets:
	@echo $(SETS)

# The tests of $(TESTS) with the oldest or the newest versions.
$(SETS):
	python=$$(.ci/python $(lastword $(subst -, ,$@))) && \
	$(MAKE) versions PYTHON=$$python VENV=build/$@ LOCK=.ci/locks/$@.txt

versions: install
	$(RUN) pytest --numprocesses=auto --dist=loadfile $(TESTS)

# Tests that are skipped without their extra; here a skipped test is a failure.
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

# Installs the wheel in an empty environment, away from the sources, and uses it.
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

# Queries a database of advisories, so it needs more than a package index.
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

# Mutated files for every reader, ten minutes each.
fuzz: install
	$(RUN) tests.fuzz --seconds=600 --jobs=2 --json=docs/results/fuzz.json --page=docs/fuzz.md

# Kills and other faults; adds to the existing results (remove the file to start over).
faults: install
	$(RUN) tests.faults --kills=300 --jobs=2 --json=docs/results/faults.json --page=docs/faults.md

notebooks: install
	$(VENV)/bin/python notebooks/execute.py

# The variable silences the theme about its end of support in May 2027.
docs: install
	$(RUN) pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict --config-file=docs/site/mkdocs.yml

clean:
	rm -rf $(VENV) build dist *.egg-info
