"""What trains many students and compares them: jobs and workers, what is kept and resumed, and how it is shown."""
