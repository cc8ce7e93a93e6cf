# `make demo` and `make test` make their own environment in .venv and reuse it the next time.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Bytecode lies beside the environment's packages, made as it is needed, whatever the caller's environment says:
# else every process that the tests start would compile our sources anew.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(abspath $(VENV))/bytecode

.PHONY: demo test check clean help
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

INSTALL := --quiet --constraint constraints.txt --editable '.[dev]'
# What pip's configuration says of one thing, in words.
pip_says = $(BIN)/python -m pip config list | sed -n "s/^.*\.$(1)='\(.*\)'$$/\1/p" | sed 's/\\n/ /g' | xargs

# uv takes less than half of pip's time; what it doesn't find, or cannot do, pip might.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	UV_INDEX_STRATEGY=unsafe-best-match UV_INDEX="$$($(call pip_says,extra-index-url))" \
	UV_DEFAULT_INDEX="$$($(call pip_says,index-url) | cut -d' ' -f1)" \
	UV_FIND_LINKS="$$($(call pip_says,find-links) | tr ' ' ,)" \
	SSL_CERT_FILE="$${SSL_CERT_FILE:-$$($(call pip_says,cert) | cut -d' ' -f1)}" \
	$(BIN)/uv pip install --python $(BIN)/python $(INSTALL) \
	|| $(BIN)/python -m pip install --no-compile $(INSTALL)
	@touch $@

demo: $(VENV)/.installed  ## pre-train two small models on bundled images (4 minutes on 2 CPU cores, environment apart)
	$(BIN)/emae demo

test: $(VENV)/.installed  ## run the linters, the type checker and the tests
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.installed  ## run only the linters and the type checker
	$(BIN)/python -m pytest tests/test_house.py

clean:  ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache
