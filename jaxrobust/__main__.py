"""`python -m jaxrobust`: see `jaxrobust.cli`."""

import sys

from jaxrobust.cli import main

if __name__ == "__main__":
    sys.exit(main())
