"""Parts of `cremer2018.py`: models, cells, published numbers, estimators, claims, figures."""
