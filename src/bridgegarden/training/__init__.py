"""The trainer: a thin layer that gathers what the objective needs, calls it, and logs its terms."""
