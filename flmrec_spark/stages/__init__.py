"""DataFrame in, DataFrame out: no table is read or written here."""
