"""OPT in TensorFlow and JAX, and its files."""
