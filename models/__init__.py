"""The model half: decoder, training, evaluation, registration, report. Never imports pyspark."""

import os

# Read by OpenMP when torch loads. A thread that waits for another by spinning takes the core from it: on two cores with
# any other load a training step took 6 s instead of 0.3 s.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
