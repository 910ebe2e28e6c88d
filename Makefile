# Two commands matter: `make demo` and `make test`. Both do all their own set-up, in .venv, on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The S3 server of the tests, without its pin of an older botocore: 1.4 does not honour AUTH=true.
MINISTACK := ministack==1.5.33
export RAY_USAGE_STATS_ENABLED := 0
export YOLO_AUTOINSTALL := false
# Tests start hundreds of processes: what one compiled no other compiles again, whatever the environment says.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo test test-all check lock clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "camloop needs Python 3.11 or newer; this is " + sys.version.split()[0])'
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (the first time takes a minute or two)"
	@$(BIN)/python -m pip install --quiet --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --editable . $(MINISTACK)
	@touch $(STAMP)

demo: $(STAMP)
	@$(BIN)/camloop demo

check: $(STAMP)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

# One order of the tests for everybody; another one with CAMLOOP_TEST_SEED=NUMBER.
CAMLOOP_TEST_SEED ?= 1578579365

# Types are checked on the second core meanwhile, and said at the end.
test: $(STAMP)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/lint-imports
	@tests/apt_packages.sh tests/apt-packages.txt
	@$(BIN)/mypy >$(VENV)/mypy.txt 2>&1 & types=$$!; \
	$(BIN)/python -m pytest -m "not slow" --randomly-seed=$(CAMLOOP_TEST_SEED); tested=$$?; \
	wait $$types; typed=$$?; cat $(VENV)/mypy.txt; exit $$((tested + typed))

test-all: check
	@tests/apt_packages.sh tests/apt-packages.txt tests/apt-packages-slow.txt
	@CAMLOOP_TEST_COUNT=$${CAMLOOP_TEST_COUNT:-3} $(BIN)/python -m pytest

# The lock holds versions only, never addresses.
lock:
	@$(BIN)/python -m pip freeze --exclude-editable | grep -v -e ' @ ' -e '^-e' -e '^ministack==' > requirements.lock

clean:
	@rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
