"""The terminal: command-line options, console, tables, progress and plots."""
