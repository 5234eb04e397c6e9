"""What a user sees and types: options, console, tables, progress, plots."""
