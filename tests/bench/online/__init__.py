"""Table 5 and the A/B test of the paper, measured on simulated cities whose click model is known."""
