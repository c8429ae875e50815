"""Sources that a prediction can copy from: the user's history and the crowd, as indices and statistics."""
