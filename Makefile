# What CONTRIBUTING.md describes, by short names.
.PHONY: check test slow chaos ci

check: # linters and types
	ruff check .
	ruff format --check .
	mypy

test: # the fast tests
	pytest

slow: # full-size models, long runs, the whole demo
	pytest -m slow

chaos: # kills, damage, several processes, fuzzing
	pytest -n 0 -m chaos

ci: # everything, in a fresh virtual environment
	.ci/run
