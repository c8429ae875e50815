"""Public check-in data under published protocols."""
