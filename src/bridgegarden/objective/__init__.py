"""The hybrid objective: pure tensor functions of what a teacher and a student say about the next token.

Nothing here knows a model, a batch dictionary, a logger or a device.
"""
