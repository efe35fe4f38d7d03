"""What regular tasks run: handlers in worker processes, HTTP tools, the sandbox, and the ways to the public web."""
