"""What a recipe takes before it is run: memory, operations, hours, disk."""

from bridgegarden.plan.memory import Machine, machine_of
from bridgegarden.plan.plan import Plan, plan_recipe

__all__ = ["Machine", "Plan", "machine_of", "plan_recipe"]
