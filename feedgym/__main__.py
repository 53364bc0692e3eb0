"""``python -m feedgym`` and the program ``feedgym``."""

import os
import sys


def main() -> None:
    """Run the command line.

    Where only the environments are installed, it says how to install the rest. A reader that stops early, such as
    ``head``, ends it without a message.
    """
    try:
        from feedgym.cli import main as run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "feedgym":
            raise
        print(f'feedgym: {error.name} is not installed; run pip install "feedgym[train]".', file=sys.stderr)
        sys.exit(2)
    try:
        try:
            run()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush at exit
        sys.exit(1)


if __name__ == "__main__":
    main()
