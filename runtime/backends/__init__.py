"""Inference backends: each turns image bytes into logits and feature maps."""
