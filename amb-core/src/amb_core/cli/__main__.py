"""``python -m amb_core.cli``: the same as ``amb``."""

import sys

from . import main

sys.exit(main())
