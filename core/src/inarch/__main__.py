"""`python -m inarch`, for environments whose scripts are not on the path."""

from inarch.cli.main import main

main()
