.PHONY: check test slow mutants canary floor docs site

check:
	ruff check .
	ruff format --check .
	pyright
	lint-imports

# Files are spread over the processors; tests of one file stay together, for some share what takes long to make.
test:
	pytest -n logical --dist loadfile

slow:
	pytest -n logical --dist loadfile -m slow

# Small faults put into the code one by one, of which the tests should notice every one; tests/mutants.py has options.
mutants:
	python -m tests.mutants --sample 100

# The tests in a fresh environment: with the newest of everything, and with the lowest that pyproject.toml allows.
canary:
	.ci/run newest

floor:
	.ci/run lowest

docs:
	python docs/write_cli_reference.py
	python docs/write_recipe_reference.py
	python docs/write_methods.py

# The site, into site/: no network, and every warning is an error.
site:
	NO_MKDOCS_2_WARNING=1 mkdocs build
