"""The fault study and the fuzzer: `python -m tests.harness.faults` and `python -m tests.harness.fuzz`."""
