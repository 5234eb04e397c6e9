"""From a source to examples: readers of files, columns of known layouts, splits, near duplicates, prepared folders."""
