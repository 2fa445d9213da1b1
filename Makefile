# make test    a virtual environment, the package with its test tools, ruff, pytest
# make demo    a virtual environment, the package, a demo (DEMO=cnn; fastdl demo --help names them all)
# make bench   a virtual environment, the package with its peers, the benchmarks
# make clean   remove what these made, the virtual environment too
#
# A Python of 3.11 or newer is looked for: PYTHON=/path/to/python names one. An existing .venv is used as it is.
# Options: make test PYTEST_ARGS="-x tests/test_conv.py", make demo DEMO=rnn DEMO_ARGS="--seeds 1", make bench BENCH_ARGS="conv"

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?=
PYTEST_ARGS ?= -n auto
DEMO ?= cnn
DEMO_ARGS ?=
BENCH_ARGS ?=
SOURCES := pyproject.toml constraints.txt setup.py $(wildcard csrc/*)

.PHONY: test demo bench clean
.DELETE_ON_ERROR:

test: $(VENV)/.installed-test-dev
	$(BIN)/ruff check .
	$(BIN)/python -m pytest $(PYTEST_ARGS)

demo: $(VENV)/.installed-demo
	$(BIN)/fastdl demo $(DEMO) $(DEMO_ARGS)

bench: $(VENV)/.installed-bench
	$(BIN)/python -m bench $(BENCH_ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find fastdl tests -name __pycache__ -prune -exec rm -rf {} +
	find fastdl -name '*.so' -delete

# A set of extras, installed once for each state of the files that say what to install.
$(VENV)/.installed-test-dev: EXTRAS := test,dev
$(VENV)/.installed-demo: EXTRAS := demo
$(VENV)/.installed-bench: EXTRAS := bench
$(VENV)/.installed-%: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

# The first of these that runs and is new enough; a name that a version manager answers for may exist and not run.
$(BIN)/python:
	@for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        echo "$$python -m venv $(VENV)"; exec "$$python" -m venv $(VENV); \
	    fi; \
	done; \
	echo "fastdl needs Python 3.11 or newer, and none was found ($(or $(PYTHON),python3 python3.14 ... python3.11 python)); try: make PYTHON=/path/to/python" >&2; \
	exit 1
