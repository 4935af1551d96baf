# SPDX-License-Identifier: Apache-2.0
# make serve   serve config/quickstart.yaml and say how to log in
# make test    everything the tests need, then the tests
# make bench   measure against peers
# make lint    style and types
# make man     the manual pages, in build/man, from what --help says
# make setup   .venv with .venv/bin/wolun; all of the above begin with it

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup serve test bench lint man peers

BIN := .venv/bin

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

setup:
	@.ci/setup

serve: setup
	@exec $(BIN)/wolun serve --config config/quickstart.yaml --state-dir var

peers: setup
	@$(BIN)/python -m tests.peers

test: peers
	$(BIN)/pytest $(ARGS)

bench: peers
	$(BIN)/python -m tests.bench $(ARGS)

man: setup
	$(BIN)/click-man --target build/man wolun

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
