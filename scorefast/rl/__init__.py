"""Training: an optimizer step (`step`), every method as coefficients (`objective`), and the Trainer that runs it."""
