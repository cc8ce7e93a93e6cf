"""`python -m efficient_mae` is `emae`, so that torchrun can start it."""

import sys

from efficient_mae.cli import main

sys.exit(main())
