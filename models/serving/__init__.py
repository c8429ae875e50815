"""A trained model in use: bundles, vectors, scores, the most probable POIs."""
