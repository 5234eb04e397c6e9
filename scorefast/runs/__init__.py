"""Runs on disk: the resolved request (`job`), the run's folder, checkpoints, log and lock, and how a run resumes."""
