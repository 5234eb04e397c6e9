"""File access: atomic writes, bounded reads, seals, and checks of untrusted model folders."""
