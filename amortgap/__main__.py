"""`python -m amortgap` is the command `amortgap`."""

import sys

from amortgap.cli import main

sys.exit(main())
