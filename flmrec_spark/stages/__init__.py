"""DataFrame in, DataFrame out: no reading, no writing, no session, no clock."""
