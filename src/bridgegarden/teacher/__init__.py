"""Where teacher signals come from."""
