"""`python -m benchmarks NAME [arguments]`; without a name: what there is."""

from __future__ import annotations

import sys

from benchmarks.common import launch

NAMES = (
    *("dependencies", "graders", "kernel_resources", "memory", "prepare", "rollout"),
    *("score_loss", "stages", "templates", "text_graders"),
)

if __name__ == "__main__":
    launch("benchmarks", NAMES, sys.argv[1:])
