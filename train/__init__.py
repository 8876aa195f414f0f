"""The PyTorch stage: WGAP-VGG16, its training loop, and the plain reference of the whole method."""
