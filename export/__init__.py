"""From a model to serving artefacts: SavedModels and TFLite files.

Importing this package brings neither TensorFlow nor JAX; its build modules do.
"""
