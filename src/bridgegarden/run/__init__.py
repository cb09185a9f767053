"""From a recipe to a trained model, a cache, answers or a diagnosis: a file a command, and what they share."""
