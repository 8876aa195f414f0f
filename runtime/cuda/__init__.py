"""The kernel on NVIDIA GPUs: compiled on first use, run on features and logits where the network left them."""
