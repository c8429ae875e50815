"""Deletes data that is no longer needed or no longer allowed: vacuum and erasure."""
