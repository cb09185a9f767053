"""Worlds where Bridges and Gardens, kappa and exposure bias are computed, not estimated."""
