# `make help` says what there is. Everything is installed into $(VENV), nothing anywhere else.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
PYTEST := $(BIN)/pytest -p no:benchmark
STAMPS := $(VENV)/.stamps
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input

# "3.13", or "3.13t" without the GIL; empty when $(PYTHON) is missing or too old.
TAG := $(shell $(PYTHON) -c 'import sys; sys.version_info >= (3, 10) and \
	print("%d.%d%s" % (sys.version_info[:2] + (sys.abiflags,)))' 2>/dev/null)

# c or python: what YBSMART_BUILD says, otherwise what the compiler can do that builds extensions
# ($CC, or the one that this Python was built with).
ifeq ($(origin CC),default)
CC := $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_config_var("CC"))' 2>/dev/null)
endif
INCLUDE := $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))' 2>/dev/null)
MODE := $(filter c python,$(YBSMART_BUILD))
ifndef MODE
MODE := $(shell $(or $(CC),cc) -I'$(INCLUDE)' -include Python.h -fsyntax-only -xc /dev/null 2>/dev/null \
	&& echo c || echo python)
endif

# psycopg[binary], which the demo asks for, and gevent have no wheel for Python without the GIL, and
# mypy has none for the first of them.
CHECKED := $(if $(filter 3.13t,$(TAG)),,check)
EXTRAS := $(if $(findstring t,$(TAG)),,demo,servers,)$(CHECKED:%=%,)test,bench

ENVIRONMENT := $(STAMPS)/environment-$(TAG)
DEPENDENCIES := $(STAMPS)/dependencies-$(TAG)
PACKAGE := $(STAMPS)/package-$(TAG)-$(MODE)
# With the folders, whose times tell of deleted files.
SOURCES := setup.py $(shell find src -name __pycache__ -prune -o -print)

.DEFAULT_GOAL := help
.PHONY: help demo test test-compiled test-pure test-once test-all-pure check docs bench dist example examples install clean

help:
	@echo 'make demo     a local cluster of real servers, balanced connections, a failing node'
	@echo 'make test     all checks and tests;  make test ARGS="-k name"  for some of the tests'
	@echo 'make check    just the checks: style and types'
	@echo 'make docs     the documentation, into docs/_build/html'
	@echo 'make examples tests of the examples and the tutorial;  make example NAME=flask  runs one'
	@echo 'make bench    the benchmarks'
	@echo 'make dist     the source distribution and wheels, into dist, checked and tried;'
	@echo '              make dist PYTHONS="python3.12 python3.14t"  for more than one Python'
	@echo 'make install  just $(VENV), with this tree installed in it as it is now'
	@echo 'make clean    remove $(VENV) and everything generated'
	@echo 'Each sets up what it needs. PYTHON=python3.12 and VENV=folder choose others.'

demo: $(PACKAGE)
	@$(BIN)/ybsmart demo $(ARGS)

check: $(PACKAGE)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy -p ybsmart
	@$(BIN)/mypy tests $(if $(wildcard bench/*.py),bench)
	@$(BIN)/mypy --strict --config-file= --cache-dir=.mypy_cache/users tests/typing  # as users do

# What YBSMART_IMPL makes no difference to, or takes both builds by itself: run once. All other tests
# run twice, because the package runs on either core.
ONCE := tests/core tests/packaging tests/cluster tests/demo tests/docs tests/examples tests/faults \
	tests/processes/test_exit.py tests/processes/test_servers.py tests/processes/test_sigterm.py \
	tests/security
TWICE := tests/api tests/smart tests/processes/test_fork.py

# They wait more than they compute, so two of these runs go on at a time, each of which says what it
# has to say at its end (which make can since 4.0). JOBS=1: one after the other, and one sees how far
# it is.
JOBS ?= $(if $(filter output-sync,$(.FEATURES)),2,1)
SYNC := $(if $(filter 1,$(JOBS)),,--output-sync=target)
RUNS := $(CHECKED) $(if $(filter c,$(MODE)),test-once test-compiled test-pure,test-all-pure)

test: $(PACKAGE)
	@rm -f $(STAMPS)/tested
	@$(MAKE) --no-print-directory --keep-going --jobs=$(JOBS) $(SYNC) $(RUNS)
	@test -e $(STAMPS)/tested || { echo 'no test was chosen by: $(ARGS)'; exit 5; }

test-compiled:
	@YBSMART_IMPL=c $(call run,$(ONCE))

test-pure:
	@YBSMART_IMPL=python $(call run,$(ONCE))

test-once:
	@YBSMART_IMPL=c $(call run,$(TWICE))

test-all-pure:
	@YBSMART_IMPL=python $(call run,,--impl=python)

# All tests but these. (--deselect: --ignore does not hold for what ARGS names. 5: pytest found no
# test, which is no failure when ARGS chose tests of another run.)
run = $(PYTEST) $(1:%=--ignore=%) $(1:%=--deselect=%) $(2) $(ARGS); status=$$?; \
	test $$status = 5 || touch $(STAMPS)/tested; test $$status = 5 || exit $$status

# -E: what is documented is the installed package, whose changes Sphinx does not see.
docs: $(PACKAGE) $(STAMPS)/extra-docs
	@$(BIN)/sphinx-build -q -W --keep-going -E -b html docs docs/_build/html
	@echo docs/_build/html/index.html

# Needs the frameworks, which `make test` does without: it skips these tests, and says so.
examples: $(PACKAGE) $(STAMPS)/extra-examples
	@$(PYTEST) tests/examples $(ARGS)

example: $(PACKAGE) $(STAMPS)/extra-examples
	$(if $(PROGRAM),,$(error set NAME to script, flask, django, fastapi or sqlalchemy))
	@$(BIN)/python $(PROGRAM)

PROGRAM = $(if $(NAME),$(wildcard examples/$(NAME).py examples/$(NAME)_app.py))

# What is published, as far as these Pythons go: one source distribution, and all wheels out of that.
# On Linux the compiled ones become wheels for any Linux.
PYTHONS ?= $(PYTHON)
dist: $(PACKAGE) $(STAMPS)/extra-dist
	@rm -rf dist build ybsmart.egg-info
	@$(BIN)/python -m build -q --no-isolation --sdist
	@tar xzf dist/*.tar.gz -C dist --one-top-level=tree --strip-components=1
	@YBSMART_BUILD=python $(BIN)/python -m build -q --no-isolation --wheel --outdir dist dist/tree
ifeq ($(MODE),c)
	@set -e; for python in $(PYTHONS); do \
		echo "Building the wheel for $$python ..."; \
		rm -rf dist/tree/build; \
		$$python -m venv --clear dist/builder; \
		YBSMART_BUILD=c dist/builder/bin/python -m pip -q --disable-pip-version-check \
			wheel --no-deps --wheel-dir dist dist/tree; \
	done
	@ls dist/*-linux_*.whl >/dev/null 2>&1 || exit 0; \
	export PATH="$(abspath $(BIN)):$$PATH" && \
	auditwheel repair --strip -w dist dist/*-linux_*.whl && rm dist/*-linux_*.whl
endif
	@$(BIN)/twine check --strict dist/*.tar.gz dist/*.whl
	@$(BIN)/check-wheel-contents dist/*.whl
	@$(BIN)/python tests/packaging/fresh.py --tests dist/tree $(PYTHONS:%=--python=%) dist/*.whl
	@rm -rf dist/builder dist/tree ybsmart.egg-info

bench: $(PACKAGE)
	@$(BIN)/pytest bench $(ARGS)

install: $(PACKAGE)
	@:

clean:
	@test ! -d $(STAMPS) || rm -rf $(VENV)
	@rm -rf build dist docs/_build ybsmart.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find $(wildcard src tests bench) -name __pycache__ -prune -exec rm -rf {} +

$(ENVIRONMENT):
	$(if $(TAG),,$(error ybsmart needs Python 3.10 or newer; '$(PYTHON)' is older or does not run: set PYTHON=/path/to/python3))
	$(if $(shell $(PYTHON) -c 'import ensurepip, venv' 2>&1),$(error '$(PYTHON)' has no venv module: \
		install it (on Debian the package python3-venv), or set PYTHON=/path/to/python3))
	@echo "Setting up $(VENV) for Python $(TAG), once ..."
	@$(PYTHON) -m venv $(if $(wildcard $(STAMPS)),--clear) $(VENV)
	@mkdir -p $(STAMPS) && touch $@

# A pure build brings the dependencies along; it needs no compiler and is replaced at once.
# --prefer-binary: rather an older tool than one whose build needs more than a C compiler.
$(DEPENDENCIES): $(ENVIRONMENT) pyproject.toml
	@YBSMART_BUILD=python $(PIP) install --prefer-binary '.[$(EXTRAS)]'
	@touch $@

# What only some targets need. The installed package says what it is.
$(STAMPS)/extra-%: pyproject.toml | $(PACKAGE)
	@$(PIP) install --prefer-binary 'ybsmart[$*]'
	@touch $@

# A wheel, never an editable install: what is tested is what users get. From an empty build folder,
# because an old one would put deleted modules into the wheel.
$(PACKAGE): $(DEPENDENCIES) $(SOURCES)
ifeq ($(MODE),c)
	@echo 'Building ybsmart with the compiled core ...'
else
	@echo 'No C compiler with the headers of Python (or YBSMART_BUILD=python): pure Python build.'
endif
	@rm -rf build ybsmart.egg-info $(STAMPS)/package-* && touch $(STAMPS)/started
	@YBSMART_BUILD=$(MODE) $(PIP) install --no-build-isolation --no-deps --force-reinstall .
	@rm -rf build ybsmart.egg-info
	@mv $(STAMPS)/started $@  # its time: what was edited during the build is built again
