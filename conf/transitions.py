"""The rule for transitions: from one POI to another a few actions later, within hours. Standard library only.

Transitions are counted twice, by the Spark job (`etl/tables/training_transitions.py`) and for public protocols
(`models/copying/crowd_statistics.py`), as a check of each other. So the common rule is here.
"""

STEP_WEIGHTS = (1.0, 0.5, 0.25)
"""Weight of a transition over one, two, three steps; halves of each other, so that sums of them are exact."""
STEP_HOURS = (24.0, 12.0, 12.0)
"""Longest time of a transition over as many steps."""
