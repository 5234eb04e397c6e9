"""README.md of a checkpoint. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path

from scorefast.recipe import model_path
from scorefast.schema import Recipe


def model_card(recipe: Recipe, stage: str) -> str:
    """README.md of a checkpoint, with the Hub's metadata; of its figures it says no more than where they stand."""
    adapter = recipe.model.tuning == "lora"
    known = {
        "base_model": None if Path(model_path(recipe.model.name)).is_dir() else json.dumps(recipe.model.name),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": json.dumps(["score", "self-correction", *(["lora"] if adapter else [])]),
    }
    metadata = "".join(f"{key}: {value}\n" for key, value in known.items() if value is not None)
    correction = "".join(f"> {line}\n" for line in recipe.prompt.correction.splitlines())
    return f"""---
{metadata}---

# {"A LoRA adapter of" if adapter else "A model tuned from"} {recipe.model.name}, trained to look at its answer again

Trained by scorefast, {stage} ([SCoRe](https://arxiv.org/abs/2409.12917)): how, says `recipe.yaml` and its run's
`run.json`; what it did meanwhile, its run's `metrics.jsonl`. What it can do on held-out questions was measured where
there is a `report.json`.

Ask the question, and after the reply send this:

{correction}"""
