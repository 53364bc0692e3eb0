"""Commands of the program that run no experiment: one file per command, imported when it is called."""
