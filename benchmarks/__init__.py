"""Questions of speed, memory, size and coverage: `python -m benchmarks` lists them."""
