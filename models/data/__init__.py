"""Rows in Arrow and NumPy, and the tensors of a batch; knows no module of the network."""
