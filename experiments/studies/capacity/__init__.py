"""Parts of `capacity_sweep.py`: what varies and what the table holds, references, cells, figure."""
