# SPDX-License-Identifier: Apache-2.0
# make serve   serve a copy of config/quickstart.yaml in var/, and show how to log in; installs only what that needs
# make test    install what the tests need, then run them
# make bench   measure against other targets
# make conformance  libiscsi's suite against wolun and tgtd, side by side; FABRIC=lio goes through the kernel's target
# make fuzz    search for input that breaks wolun, for ten minutes; SECONDS=30 for less
# make powercuts  check a million states that power cuts could leave; STATES=20000 for less, SEED=7 for others
# make model   search all states of the cluster protocol and of its jobs for a wrong snapshot, about an hour; ARGS='--nodes 2' for less
# make simulate  run a million simulated clusters; SEEDS=2000 for less, SEED=7 for others
# make walk    take ten thousand random steps with a daemon, and compare every byte after each; STEPS=500 for less, SEED=7 for others
# make races   two processes race for the chunks of a store in Ceph, 10,000 times; ROUNDS=100 for less
# make stores  let the suite of the stores pass on moto and Azurite, too
# make figures  simulate the figures of lun_backends/cluster/README.md, and draw its plot
# make soak    open and close sessions for an hour and watch the memory; SECONDS=60 for less
# make lab     make a box, bring vagrant/ up with it, walk through, take it down; as root, many minutes
# make cluster-lab  shared volumes on real kernels under every disturbance, with figures, an hour; ARGS='-k held' for one
# make lint    check style, types, the direction of imports, and the form of comments
# make man     write the manual pages and the completion of shells from --help into build/
# make wheel   build the Python package (source archive and wheel) in build/dist
# make deb     build the Debian packages in build/deb, with Debian 12's tools
# make installs  build the packages and the image, install and use each, and run config/first-day.md, in fresh roots; as root
# make image   build the container image wolun, with podman or buildah, from what `make deb` builds
# make setup   make .venv with .venv/bin/wolun, from .ci/requirements.txt; all of the above but `make serve` begin with it
# make lock    move the locks in .ci/ to the newest releases that setup.cfg allows

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup serve test bench conformance fuzz powercuts model simulate figures walk soak races stores lab cluster-lab lint man wheel deb image installs peers lock

BIN := .venv/bin
BUILDER ?= $(firstword $(notdir $(shell command -v podman buildah)) podman)

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

setup:
	@.ci/setup

serve:
	@.ci/setup serve
	@exec $(BIN)/wolun serve --state-dir var

peers: setup
	@$(BIN)/python -m tests.peers

test: peers
	$(if $(ARGS),$(BIN)/pytest $(ARGS),$(BIN)/python -m tests)

bench: peers
	$(BIN)/python -m tests.bench $(ARGS)

conformance: FABRIC = portal
conformance: peers
	$(BIN)/python -m $(if $(filter lio,$(FABRIC)),tests.kernel.conformance,tests.conformance)

fuzz: SECONDS = 600
fuzz: setup
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(ARGS)

powercuts: STATES = 1000000
powercuts: SEED = 1
powercuts: setup
	$(BIN)/python -m tests.powercut --states $(STATES) --seed $(SEED) $(ARGS)

model: peers
	$(BIN)/python -m tests.model $(ARGS)

simulate: SEEDS = 1000000
simulate: SEED = 0
simulate: setup
	$(BIN)/python -m tests.simulate --seeds $(SEEDS) --seed $(SEED) $(ARGS)

installs: peers
	$(BIN)/pytest -o timeout=1800 $(ARGS) tests/packaging/check_*.py

walk: STEPS = 10000
walk: SEED = 1
walk: peers
	$(BIN)/python -m tests.walk --steps $(STEPS) --seed $(SEED) $(ARGS)

figures: setup
	$(BIN)/python -m tests.simulate.figures

soak: SECONDS = 3600
soak: peers
	$(BIN)/python -m tests.soak --seconds $(SECONDS)

races: ROUNDS = 10000
races: peers
	WOLUN_RACE_ROUNDS=$(ROUNDS) $(BIN)/pytest -q -o timeout=0 -k two_processes tests/lun_backends/stores

stores: peers
	WOLUN_STORES="moto azurite" $(BIN)/pytest -q -k "moto or azurite" tests/lun_backends/stores/test_contract.py

lab: setup
	@$(BIN)/python -m tests.lab

cluster-lab: peers
	$(BIN)/pytest -s -v tests/kernel/cluster_short.py tests/kernel/cluster_lab.py $(ARGS)

man: setup
	rm -rf build/man build/completion
	$(BIN)/click-man --target build/man wolun
	mkdir -p build/completion/bash build/completion/zsh
	$(BIN)/wolun completion bash >build/completion/bash/wolun
	$(BIN)/wolun completion zsh >build/completion/zsh/_wolun

wheel: man
	rm -rf build/python build/dist
	$(BIN)/python -c 'from setuptools import build_meta; build_meta.build_sdist("build/dist")'
	$(BIN)/pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation -w build/dist build/dist/wolun-*.tar.gz

deb: wheel
	rm -rf build/deb
	mkdir -p build/deb/wolun/wheels
	cp -r config/debian build/deb/wolun/debian
	cp build/dist/wolun-*.whl build/deb/wolun/wheels
	# oncalendar has no wheel, so it is built here, with the setuptools of the lock.
	$(BIN)/pip wheel -q --disable-pip-version-check --no-deps --require-hashes --no-binary oncalendar --no-build-isolation \
		-w build/deb/wolun/wheels -r <(sed -n '/^oncalendar==/,/[^\\]$$/p' .ci/package.txt)
	sed '/^oncalendar==/,/[^\\]$$/d' .ci/package.txt >build/deb/wolun/requirements.txt
	cd build/deb/wolun && dpkg-buildpackage -b -us -uc

image: deb
	rm -rf build/image
	mkdir -p build/image
	cp build/deb/wolun_*.deb build/image/wolun.deb
	cp config/Containerfile build/image
	cd build/image && $(BUILDER) build --format docker --layers=false -t wolun -f Containerfile .

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python .ci/sentences

lock: setup
	@.ci/lock
