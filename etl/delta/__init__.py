"""The only package that knows Delta: contracts, reads, commits, old versions, erasure."""
