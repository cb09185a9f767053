"""Worlds where Bridges and Gardens, kappa and exposure bias are computed, not estimated."""

from bridgegarden.exact.process import Process, ProcessPolicy, Role, TablePolicy
from bridgegarden.exact.solution import ActionSet, ExactSolution, solve
from bridgegarden.exact.tabular import TabularProcess, Tabulated, tabulate

__all__ = [
    "ActionSet",
    "ExactSolution",
    "Process",
    "ProcessPolicy",
    "Role",
    "TablePolicy",
    "TabularProcess",
    "Tabulated",
    "solve",
    "tabulate",
]
