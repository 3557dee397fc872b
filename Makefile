# `make quickstart` trains the embedded example, `make test` runs the suite, `make docs` builds the site,
# `make gpu-compile` says what the step's kernels move on a graphics card that need not be there; each sets up .venv by itself.
PYTHON ?= python3
# an environment for each Python that is named: `make test PYTHON=python3.13` leaves .venv alone
VENV := .venv$(patsubst python3%,%,$(notdir $(PYTHON)))
BIN := $(VENV)/bin
# pyenv's shim of a version that is not selected runs nothing: then that version's own program, of those that are installed
PYENV_FOUND = $(lastword $(wildcard $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions/$(patsubst python%,%,$(notdir $(PYTHON))).*/bin/python))
INTERPRETER = $(if $(shell $(PYTHON) -c 'print(1)' 2>/dev/null),$(PYTHON),$(or $(PYENV_FOUND),$(PYTHON)))
STAMP := $(VENV)/.installed
TEST_STAMP := $(VENV)/.installed-test

.PHONY: quickstart test gpu-compile docs venv lint clean
.DELETE_ON_ERROR:

venv: $(STAMP)

$(STAMP): pyproject.toml
	@$(INTERPRETER) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "jaxface needs Python 3.11 or newer: make PYTHON=python3.12 venv" >&2; exit 2; }
	$(INTERPRETER) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable .
	@touch $@

# The PyTorch originals that the parity tests compare against, for the first Python alone: elsewhere those tests are left out. The last line goes without dependencies: they would replace the CPU torch.
$(TEST_STAMP): $(STAMP) pyproject.toml
	$(BIN)/pip install --quiet --editable '.[test,detect]'
ifeq ($(VENV),.venv)
	$(BIN)/pip install --quiet --editable '.[reference]'
	$(BIN)/pip install --quiet --no-deps 'timm==1.0.31' 'open_clip_torch==3.3.0' 'peft==0.21.2' 'transformers==5.24.0' 'torchvision==0.29.1' 'coral-pytorch==1.4.0'
endif
	@touch $@

quickstart: $(STAMP)
	$(BIN)/python -m jaxface.train

test: $(TEST_STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=10

gpu-compile: $(TEST_STAMP)
	$(BIN)/pip install --quiet --editable '.[gpu-compile]'
	$(BIN)/python -m jaxface.bench compile --device h100 --variant PE-Core-L14-336 --batch-size 128 --cases lp full lora dora mtlora ft4

docs: $(TEST_STAMP)
	$(BIN)/zensical build --strict --clean

lint: $(TEST_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/ty check jaxface weights_convert --python $(VENV)

clean:
	rm -rf $(VENV) build site *.egg-info .pytest_cache .ruff_cache
