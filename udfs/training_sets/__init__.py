"""Training sets of a ranking model: shown POIs with the features that were known at each request."""
