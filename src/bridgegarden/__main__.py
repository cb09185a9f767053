"""``python -m bridgegarden``, which is also what ``accelerate launch -m bridgegarden train RECIPE`` runs."""

from bridgegarden.cli.main import main

if __name__ == "__main__":
    main()
