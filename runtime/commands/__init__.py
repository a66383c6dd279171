"""The command line of `runtime/`, a module for each command."""
