"""Lists of two systems side by side: judges, and the shares of requests that either wins (paper, Table 5)."""
