"""scorefast: teach a language model to correct itself, on one consumer GPU or none (SCoRe, arXiv 2409.12917)."""

__version__ = "0.1.0"
