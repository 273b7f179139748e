"""Training of encoders, and of decoders with them."""
