"""`python -m ybsmart`: the command of the same name. Decides nothing."""

import sys

from ybsmart.cli import main

if __name__ == "__main__":
    sys.exit(main())
