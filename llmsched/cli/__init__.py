"""The command line: `llmsched …`."""
