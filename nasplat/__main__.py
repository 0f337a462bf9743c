"""`python -m nasplat`."""

from nasplat.cli.main import main

main()
