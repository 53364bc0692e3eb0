"""Commands of the program that run no experiment: each file one command, imported when it is called."""
