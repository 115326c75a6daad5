"""`python -m sharevl_explorer RUN`."""

import sys

from sharevl_explorer.command import main

sys.exit(main())
