"""The runtime behind other people's servers and schedulers: Triton, Ray."""
