"""The embeddable part: feature maps and logits to boxes, and a localizer over an inference backend.

Needs neither torch nor onnx. NumPy, OpenCV and the backend's library load when something runs.
"""
