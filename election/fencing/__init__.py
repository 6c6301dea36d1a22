"""Makes resources refuse a leader that has been deposed: one file for each kind of resource."""
