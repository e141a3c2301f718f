"""Entry point of ``python -m distillery.ledger``."""

import sys

from distillery.ledger.commands import main

if __name__ == "__main__":
    sys.exit(main())
