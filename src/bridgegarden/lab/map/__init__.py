"""The map of the lab: students of one small exact world, trained many at once, and what decides which labels are
better."""
