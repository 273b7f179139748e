"""What knows the conventions of another package: flax modules, NumPyro models and guides."""
