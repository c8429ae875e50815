"""The report of a release: one HTML page from the tables that it pins."""
