"""From a checkpoint to a bundle, and the proof that both say the same."""
