# Tessera: `make up` to try it, `make test` to test it. `make` alone lists the targets.

PORT ?= 8000
VAR ?= var
WORKERS ?= 1
ARGS ?=
# Tools that no part of Tessera imports: the installer, and for `make compat` other people's packages.
TOOLS := uv==0.13.9
COMPAT := langchain-openai==1.7.3 transformers==5.23.0
export PORT VAR WORKERS
VAR_PATH = $(if $(filter /%,$(VAR)),,./)$(VAR)

ifndef PYTHON
PYTHON := $(shell for each in python3 python3.13 python3.12 python3.11; do \
	$$each -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$each && break; done)
endif
# A Python that was named by hand is the one to use, even if .venv has another.
ANEW := $(if $(filter file,$(origin PYTHON)),,--anew)
ENVIRONMENT = $(if $(PYTHON),,$(error Tessera needs Python 3.11 or newer: make $(MAKECMDGOALS) \
	PYTHON=/path/to/python3.12))$(PYTHON) demo/environment.py $(ANEW)
# By file: what a file's tests share may be a whole system that runs.
PYTEST = .venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile
# mypy and makemigrations read the settings and open no connection.
OFFLINE = TESSERA_DEBUG=1 TESSERA_SECRET_KEY=- TESSERA_KEY_PEPPER=- TESSERA_CREDENTIAL_KEYS=- \
	DATABASE_URL=postgresql://nobody@127.0.0.1:1/none REDIS_URL=redis://127.0.0.1:1
LOCK = .venv/bin/uv pip compile pyproject.toml --universal --python-version 3.11 \
	--generate-hashes --no-header --quiet

.DEFAULT_GOAL := help
.PHONY: help up down demo-month manage test faults check sql lock compat bench

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

up:  ## start everything on PORT (8000), data in VAR (var); Ctrl-C stops it
	@$(ENVIRONMENT) requirements-demo.txt
	@exec .venv/bin/python -m demo.up

down:  ## stop what `make up` started, from another terminal
	@$(ENVIRONMENT) requirements-demo.txt
	@exec .venv/bin/python -m demo.up --down

manage:  ## run a management command on what is up: make manage ARGS="usage"
	@test -r "$(VAR_PATH)/tessera.env" || { echo "✗ nothing was ever up in $(VAR): make up"; exit 1; }
	@set -a; . "$(VAR_PATH)/tessera.env" && exec .venv/bin/python manage.py $(ARGS)

demo-month:  ## make up a month of three organizations, invoice it, leave the PDFs in VAR/demo-month
	@$(ENVIRONMENT) requirements-demo.txt
	@exec .venv/bin/python -m demo.month

test:  ## run the tests against a PostgreSQL and a Valkey of their own (ARGS="-k tiles")
	@$(ENVIRONMENT) requirements-dev.txt
	@exec $(PYTEST) $(ARGS)

faults:  ## kill everything at random for four minutes, then check the books (SEED=7 ARGS="--seconds 60")
	@$(ENVIRONMENT) requirements-dev.txt
	@exec .venv/bin/python -m tests.faults $(if $(SEED),--seed $(SEED)) $(ARGS)

check:  ## what CI runs: format, lint, types, migrations, house rules, tests
	@$(ENVIRONMENT) requirements-dev.txt
	.venv/bin/python -m ruff format --check --quiet .
	.venv/bin/python -m ruff check --quiet .
	@$(OFFLINE) .venv/bin/python -m mypy .
	@$(OFFLINE) .venv/bin/python -W ignore manage.py makemigrations --check --dry-run
	@.venv/bin/python -m pytest -q tests/test_house.py
	@exec $(PYTEST) $(ARGS)

sql:  ## write */sql/ anew: the functions and triggers that all migrations come to
	@$(ENVIRONMENT) requirements-dev.txt
	@WRITE_SQL=1 .venv/bin/python -m pytest -q tests/test_stored_functions.py

lock:  ## compile the hashed requirements from pyproject.toml
	@$(ENVIRONMENT) requirements-dev.txt
	$(LOCK) --output-file requirements.txt
	printf '%s\n' $(TOOLS) | $(LOCK) - --constraint requirements.txt \
		--extra demo --output-file requirements-demo.txt
	printf '%s\n' $(TOOLS) | $(LOCK) - --constraint requirements.txt \
		--extra demo --extra dev --output-file requirements-dev.txt
	printf '%s\n' $(TOOLS) $(COMPAT) | $(LOCK) - --constraint requirements-dev.txt \
		--extra demo --extra dev --output-file tests/compat/requirements.txt

compat:  ## run other people's clients against the gateway (ARGS="curl"; needs Node and npm)
	@$(ENVIRONMENT) tests/compat/requirements.txt
	@.venv/bin/python -m pytest -q tests/compat
	@exec .venv/bin/python -m tests.compat.run $(ARGS)

bench:  ## measure the gateway's own cost per request and per streamed chunk
	@$(ENVIRONMENT) requirements-dev.txt
	@exec .venv/bin/python -m benchmarks $(ARGS)
