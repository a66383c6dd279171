"""OPT in JAX: pure functions (`model`) and the Flax classes on top of them."""
