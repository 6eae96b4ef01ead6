"""`python -m nncift`."""

from nncift.cli.main import main

main()
