"""The command line of `export/`, a module for each command."""
