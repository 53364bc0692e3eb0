"""``python -m feedgym``."""

from feedgym.cli import main

main()
