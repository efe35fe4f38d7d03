"""`python -m llmsched` is `llmsched`."""

from llmsched.cli.main import main

main()
