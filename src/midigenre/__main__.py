"""``python -m midigenre``."""

import sys

from midigenre.cli import main

if __name__ == "__main__":
    sys.exit(main())
