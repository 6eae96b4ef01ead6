"""`python -m nncift`."""

from nncift.cli import main

main()
