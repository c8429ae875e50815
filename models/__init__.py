"""The model half: decoder, training, evaluation, registration, report. Never imports pyspark."""

import os

# Read by OpenMP when torch loads. A thread that waits for another by spinning takes the core from it: with any
# other load on the machine a training step then takes many times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
