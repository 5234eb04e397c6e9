"""The model card, README.md of a checkpoint. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path

from scorefast.recipe import model_path
from scorefast.schema import Recipe


def model_card(recipe: Recipe, stage: str) -> str:
    """README.md of a checkpoint, with the Hub's metadata. It points to the files with results and quotes none."""
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

Trained by scorefast, {stage} ([SCoRe](https://arxiv.org/abs/2409.12917)). `recipe.yaml` has all settings; the run's
folder has its start in `run.json` and its training log in `metrics.jsonl`. Results on held-out questions, if it was
evaluated, are in `report.json`.

Ask the question. After the reply, send this message:

{correction}"""
