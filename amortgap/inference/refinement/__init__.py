"""Closing a gap after the encoder: refinement at test time and encoders made for it."""
