# `make demo` and `make test` set up whatever is missing first; a second run starts at once.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv pip
LISTS := $(wildcard requirements/*.txt)
ACCELERATOR := $(shell if [ -e /proc/driver/nvidia/version ]; then echo cuda; else echo cpu; fi)
STAMP := $(VENV)/.installed-$(ACCELERATOR)

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
	@$(BIN)/python -m pytest -m "not integration and not fault"

integration: setup
	@$(BIN)/python -m pytest -m "integration or fault" --durations=15

$(STAMP): $(LISTS) pyproject.toml jobs/local/jars.lock
	@command -v $(PYTHON) >/dev/null || { echo "setup: $(PYTHON) is missing; install Python 3.11 with its venv module (Debian: apt-get install python3.11-venv)"; exit 1; }
	@free=$$(df -Pk . | awk 'NR==2 {print int($$4/1048576)}'); [ "$$free" -ge 9 ] || { echo "setup: $$free GiB free here, 9 GiB needed; free some space or clone onto another disk"; exit 1; }
	@[ -x $(BIN)/python ] || { echo "setup: virtual environment"; $(PYTHON) -m venv $(VENV); }
	@echo "setup: installer"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements/installer.txt || { echo "setup: the package index is not reachable; check the network or set PIP_INDEX_URL"; exit 1; }
	@echo "setup: torch ($(ACCELERATOR)); the largest part, about 5 GB on disk unless UV_TORCH_BACKEND=cpu"
	@$(UV) install -q --python $(BIN)/python -r requirements/torch.txt || { echo "setup: torch could not be installed; check the network and the free space, then run make again: it resumes"; exit 1; }
	@echo "setup: everything else"
	@$(UV) install -q --python $(BIN)/python --no-deps -r requirements/runtime.txt -r requirements/$(ACCELERATOR).txt -r requirements/dev.txt || { echo "setup: a package could not be installed; check the network and the free space, then run make again: it resumes"; exit 1; }
	@$(UV) install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	@echo "setup: jars of Kafka and Flink's connector"
	@$(BIN)/python -m jobs.local.jars
	@echo "setup: byte code"
	@$(BIN)/python -m compileall -q -j 2 $$($(BIN)/python -c "import pyflink, feast, torchrec, pathlib; print(*(pathlib.Path(m.__file__).parent for m in (pyflink, feast, torchrec)))" 2>/dev/null) || true
	@rm -f $(VENV)/.installed-*
	@touch $@
	@echo "setup: done"

clean:
	rm -rf $(VENV) var
