"""Recipes: YAML files that describe a whole distillation run, and the dataclasses they become."""

from bridgegarden.recipe.load import describe_recipe, list_recipes, load_recipe, read_recipe_text
from bridgegarden.recipe.objective import ObjectiveSection, build_objective, describe_objective
from bridgegarden.recipe.sections import DataSection, FreeRunningSection, Recipe
from bridgegarden.recipe.student import StudentSection
from bridgegarden.recipe.teacher import TeacherSection
from bridgegarden.recipe.training import LoraSection, TrainingSection, build_lora_config, build_sft_config

__all__ = [
    "DataSection",
    "FreeRunningSection",
    "LoraSection",
    "ObjectiveSection",
    "Recipe",
    "StudentSection",
    "TeacherSection",
    "TrainingSection",
    "build_lora_config",
    "build_objective",
    "build_sft_config",
    "describe_objective",
    "describe_recipe",
    "list_recipes",
    "load_recipe",
    "read_recipe_text",
]
