"""`python -m wsol` is the command `wsol`."""

from wsol.cli.main import main

raise SystemExit(main())
