"""Parts of `remedies.py`: the remedies, cells, figure."""
