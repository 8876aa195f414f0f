"""The embeddable part: feature maps and logits to boxes, and a localizer over an inference backend."""
