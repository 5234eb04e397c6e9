"""Grade replies: `answer` extracts the answer, `grade` has the graders, `function` calls reward functions."""
