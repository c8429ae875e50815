"""Planted faults in models, nights and deliveries, and whether the gates catch them (`make bench-gates`)."""
