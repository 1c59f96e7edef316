"""`python -m fathom`, for where the command is not on the path."""

from fathom.cli import main

main()
