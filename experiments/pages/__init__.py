"""Numbers in README and docs that committed tables imply: where they stand, and how they follow from the tables."""
