"""The sub-commands of the command line, and what only they need."""
