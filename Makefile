.PHONY: check test slow docs

check:
	ruff check .
	ruff format --check .
	pyright
	lint-imports

test:
	pytest

slow:
	pytest -m slow

docs:
	python docs/write_cli_reference.py
