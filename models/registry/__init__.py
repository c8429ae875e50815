"""From a finished training to a champion: bundle, gates, registration."""
