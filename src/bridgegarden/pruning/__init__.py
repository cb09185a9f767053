"""A student cut out of its teacher: which layers, heads and channels are kept, and the model that is left."""
