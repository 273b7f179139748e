"""Parts of `certificate_check.py`."""
