"""The command line's door, also `python -m streamfit`. Floor 7.

Dask's workers run the main script as they start, to find its names: what commands need is loaded in the call.
"""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from streamfit.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
