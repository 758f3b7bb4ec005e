# Short names for the scripts in .ci, which also work where make is missing.

.PHONY: demo test check lint format setup

demo:
	@sh .ci/demo

test:
	@sh .ci/test

check:
	@sh .ci/run

setup:
	@sh .ci/setup test

lint: setup
	.venv/bin/ruff check caiafs tests
	.venv/bin/mypy

format: setup
	.venv/bin/ruff format caiafs tests
	.venv/bin/ruff check --fix caiafs tests
