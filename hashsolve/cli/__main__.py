"""``python -m hashsolve.cli``, where the command itself is not on the path."""

import sys

from hashsolve.cli import main

sys.exit(main())
