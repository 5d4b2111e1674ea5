"""`python -m pfedst.cli`, where the `pfedst` script is not on the path."""

import sys

from pfedst.cli.main import main

sys.exit(main())
