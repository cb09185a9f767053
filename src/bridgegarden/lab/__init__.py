"""The controlled study: students trained against exact processes, measured exactly, and the paper's claims as tests."""
