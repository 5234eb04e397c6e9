"""The command `scorefast`, and `python -m scorefast`."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from scorefast.cli import main as run

        run()
    except KeyboardInterrupt:  # while it was still being imported
        sys.exit(130)


if __name__ == "__main__":
    main()
