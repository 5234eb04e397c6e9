"""`python -m studies NAME [arguments]`; without a name: what there is."""

from __future__ import annotations

import sys

from benchmarks.common import launch

NAMES = ("llama_cpp", "reading", "self_correction", "smollm2")

if __name__ == "__main__":
    launch("studies", NAMES, sys.argv[1:])
