"""Local VI: an ascent for every datum, the choice among its stages, and the certificate of what is left to gain."""
