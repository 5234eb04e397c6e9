"""Questions about learning and models: `python -m studies` lists them."""
