"""`python -m sharevl_lite` is `sharevl-lite`."""

from sharevl_lite.cli import main

raise SystemExit(main())
