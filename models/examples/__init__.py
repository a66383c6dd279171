"""Runnable examples: fine-tuning, training the tiny model, random checkpoints."""
