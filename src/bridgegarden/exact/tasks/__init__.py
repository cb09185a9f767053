"""The finite-state worlds that ship with the package."""
