"""Objectives on one pair at equal budget: quality against cost, with intervals."""
