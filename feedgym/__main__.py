"""``python -m feedgym`` and the program ``feedgym``."""

import sys


def main() -> None:
    """Run the command line; say how to install it where only the environments are."""
    try:
        from feedgym.cli import main as run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "feedgym":
            raise
        print(f'feedgym: {error.name} is not installed; run pip install "feedgym[train]".', file=sys.stderr)
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
