"""Functions of columns and judgements of single rows: space, time, ids, rules. No session, no table."""
