# SPDX-License-Identifier: Apache-2.0
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint docs clean

PACKAGES := .venv/.packages-installed
OVERLAY := install/.overlay-built

help:  ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */make \1\t/' | expand -t 14

setup: $(OVERLAY)  ## install into .venv and build with colcon; PYTHON=... chooses the interpreter

$(PACKAGES): setup.py scripts/requirements-ros.txt scripts/setup.sh scripts/repair_cmake_paths.py
	@scripts/setup.sh packages
	@touch $@

$(OVERLAY): $(PACKAGES) package.xml CMakeLists.txt $(wildcard msg/*.msg)
	@scripts/setup.sh overlay
	@touch $@

demo: setup  ## run the node chain on simulated camera images with blackouts; ARGS=... for options
	@. ./activate && oc-perception demo $(ARGS)

test: setup  ## run the test suite; ARGS=... for pytest
	@. ./activate && OC_REQUIRE_ROS=1 pytest $(ARGS)

lint: setup  ## check style
	@.venv/bin/ruff check . && .venv/bin/ruff format --check .

docs: setup  ## generate docs/parameters.md from the nodes' parameter tables
	@. ./activate && python -m oc_perception.nodes.parameters > docs/parameters.md.new
	@mv docs/parameters.md.new docs/parameters.md

clean:  ## remove what was built and cached; .venv stays (remove it to start over)
	rm -rf build install log .pytest_cache .ruff_cache
	find oc_perception test scripts -name __pycache__ -type d -prune -exec rm -rf {} +
