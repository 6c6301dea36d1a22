"""`python -m election.cli`."""

from election.cli.main import main

main()
