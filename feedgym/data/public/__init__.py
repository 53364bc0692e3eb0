"""Public data sets, by the files that they are known by."""
