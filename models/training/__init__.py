"""The four stages, and the loop, losses and steps that they share."""
