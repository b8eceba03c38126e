"""`python -m streamfit` is the command line. Floor 7."""

from streamfit.cli import main

main()
