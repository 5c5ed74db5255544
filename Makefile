# make install   everything into .venv
# make demo      documents ingested and questions answered with LlamaIndex, side by side with full prefill
# make demo-langchain   the same with LangChain
# make test      all tests (the fast ones alone: make test-fast)
# make test-ray  those that need Ray, which is large and is installed for them alone
# make check     ruff and mypy --strict
# make cookbook  every notebook, run again and written with its outputs
# make docs      the documentation as a site, in build/site (make docs-serve: shown while it is written)
# make bench     the figures of benchmarks/, printed

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
QUANTISED := $(VENV)/quantised
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

# Threads that wait by spinning slow each other down many times over where several processes compute.
test test-fast test-ray cookbook: export OMP_WAIT_POLICY := passive

.PHONY: install demo demo-langchain test test-fast test-ray check format bench cookbook docs docs-serve clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt apps/pyproject.toml $(wildcard integrations/*/pyproject.toml)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --upgrade "pip>=25.1"
	$(PIP_INSTALL) --editable ".[gguf,objects,redis]" --editable integrations/langchain --editable integrations/llama_index \
		--editable integrations/vllm --editable "apps[demo,evaluate,plots,serve]" --group dev
	touch $@

demo: install
	$(BIN)/samkv demo

demo-langchain: install
	$(BIN)/samkv demo --framework langchain

# Apart, since transformers imports torchao wherever it finds it, which writes warnings to every program's terminal.
$(QUANTISED): | $(INSTALLED)
	$(PIP_INSTALL) --no-deps --target $@ bitsandbytes torchao compressed-tensors loguru

test: install $(QUANTISED)
	$(BIN)/python -m pytest --slow $(PYTEST_ARGS)
	PYTHONPATH=$(QUANTISED) $(BIN)/python -m pytest tests/model/test_quantised.py

test-fast: install
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-ray: install
	$(PIP_INSTALL) --editable "apps[ray]"
	$(BIN)/python -m pytest --slow apps/tests/serve/test_serve_ray.py apps/tests/ask/test_ask_bulk.py $(PYTEST_ARGS)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python -m benchmarks.engine

cookbook: install
	$(BIN)/python cookbook/run.py

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

clean:
	rm -rf $(VENV) samkv-demo build/site
