"""The simulated city, with what is planted in it."""
