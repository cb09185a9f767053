"""Many trainings in one command: spread over processes, shown while they run, kept when they are done."""
