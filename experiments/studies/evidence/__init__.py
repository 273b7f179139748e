"""Parts of `evidence_check.py`: cases, coverage of intervals, figure."""
