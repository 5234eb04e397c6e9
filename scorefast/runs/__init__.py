"""Runs on disk: what a command was asked (`job`), its folder, checkpoints, log, lock, and how it is resumed."""
