"""Figures of a table's day and the rules that judge them."""
