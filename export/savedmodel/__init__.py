"""SavedModel exports: the contract's signatures over TensorFlow or JAX graphs."""
