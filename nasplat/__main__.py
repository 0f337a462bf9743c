"""`python -m nasplat`."""

from nasplat.cli.main import main

if __name__ == "__main__":
    main()
