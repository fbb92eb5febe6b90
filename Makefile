# `make demo` and `make test` set up whatever is missing first; a second run starts at once.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv pip
LISTS := $(wildcard requirements/*.txt)
ACCELERATOR := $(shell if [ -e /proc/driver/nvidia/version ]; then echo cuda; else echo cpu; fi)
STAMP := $(VENV)/.installed-$(ACCELERATOR)
NEEDED_GIB := 9
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
# Progress bars on a terminal, silence in a log.
QUIET := $(shell [ -t 2 ] || echo -q)
fail = { echo "setup: $(1)" >&2; exit 1; }

.PHONY: setup demo test lint unit integration clean
.DELETE_ON_ERROR:

setup: $(STAMP)

demo: setup
	@$(BIN)/sidstream demo

test: setup lint unit integration

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy kernels model streaming features generation serving jobs

unit: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --ignore=tests/integration -m "not integration and not fault"

integration: setup
	@$(BIN)/python -m pytest -n 3 --dist loadfile -m "(integration or fault) and not whole_machine" --durations=15
	@$(BIN)/python -m pytest -m whole_machine --durations=5

$(STAMP): $(LISTS) pyproject.toml jobs/local/jars.lock
	@$(PYTHON) -c 'import sys, ensurepip, venv; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || $(call fail,$(PYTHON) is no Python 3.11 with its venv module: install both (Debian: python3.11 and python3.11-venv) or name one: make PYTHON=/path/to/python3.11)
	@free=$$(df -Pk . | awk 'NR==2 {print int($$4/1048576)}'); [ "$$free" -ge $(NEEDED_GIB) ] || $(call fail,$$free GiB are free here and $(NEEDED_GIB) are needed: free some space or clone onto another disk)
	@[ -x $(BIN)/pip ] || { echo "setup: virtual environment"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "setup: installer"
	@$(BIN)/python -m pip install -qq --retries 1 --disable-pip-version-check -r requirements/installer.txt 2>$(VENV)/setup.log || $(call fail,the package index cannot be reached: check the network or set PIP_INDEX_URL; details in $(VENV)/setup.log)
	@echo "setup: torch ($(ACCELERATOR)): the largest part, 5 GB on disk unless UV_TORCH_BACKEND=cpu"
	@$(UV) install --python $(BIN)/python -r requirements/torch.txt $(QUIET) || $(call fail,torch could not be installed: check the network and the free space; make again resumes)
	@echo "setup: everything else"
	@$(UV) install --python $(BIN)/python --no-deps -r requirements/runtime.txt -r requirements/$(ACCELERATOR).txt -r requirements/dev.txt $(QUIET) || $(call fail,a package could not be installed: check the network and the free space; make again resumes)
	@$(UV) install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	@echo "setup: jars of Kafka and of Flink's connectors"
	@$(BIN)/python -m jobs.local.jars
	@echo "setup: the beam search, compiled for this processor"
	@$(BIN)/python -c 'from kernels import native; native.library()'
	@echo "setup: byte code"
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib/python3.11/site-packages >/dev/null 2>&1 || true
	@rm -f $(VENV)/.installed-*
	@touch $@
	@echo "setup: done"

clean:
	rm -rf $(VENV) var
