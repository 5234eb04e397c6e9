"""A model and how to talk to it: chat format, loading, adapters, checks, generation, memory."""
