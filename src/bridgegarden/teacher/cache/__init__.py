"""Teacher signals on disk: the teacher runs once, and any number of trainings read what it said."""
