"""`python -m guerdon`."""

from guerdon.cli import main

raise SystemExit(main())
