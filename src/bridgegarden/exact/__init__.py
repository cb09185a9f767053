"""Worlds where Bridges and Gardens, kappa and exposure bias are computed, not estimated."""

from bridgegarden.exact.process import Process, Role
from bridgegarden.exact.process_policy import ProcessPolicy, TablePolicy
from bridgegarden.exact.solution import ActionSet, ExactSolution
from bridgegarden.exact.solver import solve
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
