"""`python -m pfedst`."""

import sys

from pfedst.cli import main

sys.exit(main())
