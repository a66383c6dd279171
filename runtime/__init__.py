"""From prompt to text: the client. Imports neither TensorFlow nor JAX."""
