"""The ranking team's model, with and without our features."""
