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

lint:
	@sh .ci/lint

format: setup
	.venv/bin/ruff format caiafs tests
	.venv/bin/ruff check --fix caiafs tests
