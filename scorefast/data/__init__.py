"""Read files of rows into examples: common layouts, splits, near duplicates and prepared folders."""
