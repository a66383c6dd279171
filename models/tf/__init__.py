"""OPT in TensorFlow: pure functions (`model`) and the Keras classes on top of them."""
