"""`python -m efficient_mae` is `emae`, so that torchrun can start it."""

import sys

from efficient_mae.errors import broken_library


def main() -> int:
    """Run `emae`, or say on one line which library it lacks to start with; return the exit status."""
    try:
        from efficient_mae.cli import main
    except Exception as error:  # one that is half installed raises anything
        if (reason := broken_library(error)) is None:
            raise
        print(f"emae: {reason}", file=sys.stderr)
        return 2
    return main()


if __name__ == "__main__":
    sys.exit(main())
