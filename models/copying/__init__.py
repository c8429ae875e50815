"""What a prediction may be copied from: a user's own history and the crowd's, as indices and statistics."""
