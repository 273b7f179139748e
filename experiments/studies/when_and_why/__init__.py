"""Parts of `when_and_why.py`: exact answers, data, every model, claims, figures."""
