"""TFLite exports: static signatures with an explicit cache."""
