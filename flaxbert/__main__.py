"""``python -m flaxbert <command>``, the same as the ``flaxbert`` command."""

import sys

from flaxbert.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
