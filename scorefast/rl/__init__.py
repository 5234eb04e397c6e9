"""Training: one optimizer step (`step`), its coefficients by method (`objective`), and the Trainer that runs it."""
