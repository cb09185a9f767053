.PHONY: check test docs

check:
	ruff check .
	ruff format --check .
	pyright
	lint-imports

test:
	pytest

docs:
	python docs/write_cli_reference.py
