"""``python -m amb_core.demo``: the same as ``amb demo``."""

import sys

from amb_core.cli import main

sys.exit(main(["demo", *sys.argv[1:]]))
