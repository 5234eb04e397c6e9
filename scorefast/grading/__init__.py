"""Is a reply right? Which part of it counts (`answer`), the graders (`grade`), and reward functions (`function`)."""
