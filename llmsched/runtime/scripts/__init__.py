"""What the tasks of a job are: recorded ones, live ones out of templates, and calls that an agent makes itself."""
