"""How good a model is: lm-eval's tasks, tasks that need no network, a judge, and what a difference is worth."""
