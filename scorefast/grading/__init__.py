"""Grade replies: `answer` extracts the answer, `grade` has the graders, `reward_function` calls reward functions."""
