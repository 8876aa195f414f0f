"""Real photographs and the published weights: views and normalisation are what the weights were trained with."""

from __future__ import annotations

import pytest
import torch

from wgap.datasets import open_dataset
from wgap.preprocessing import preprocessing
from wgap.train.checkpoint import load_model
from wgap.train.views import Draw, Views, normalise


@pytest.mark.data
def test_published_weights_recognise_birds_in_plain_views(cub10, cub10_weights):
    data = open_dataset(cub10, split="test")
    chosen = data.samples[::20]
    loaded = load_model(cub10_weights, data.classes, "caffe-bgr")
    views = Views([s.path for s in chosen], [s.label for s in chosen], 224, seed=0)
    pixels = torch.stack([views[Draw(i, -1)].inputs for i in range(len(chosen))])
    labels = torch.tensor([s.label for s in chosen])
    sure = {}
    for name in ("caffe-bgr", "torchvision-rgb"):
        with torch.no_grad():
            logits, _ = loaded.model(normalise(pixels, preprocessing(name)))
        sure[name] = logits.softmax(1)[torch.arange(len(labels)), labels].mean().item()
    assert sure["caffe-bgr"] >= 0.7, sure
    assert sure["torchvision-rgb"] < 0.3, sure


@pytest.mark.data
def test_views_of_real_photographs_are_crops_of_the_resized_image(cub10):
    from wgap.images import decode, resize
    from wgap.train.views import crop_and_flip

    sample = open_dataset(cub10).samples[3]
    views = Views([sample.path], [sample.label], 224, seed=5)
    whole = torch.from_numpy(resize(decode(sample.path), 256, 256))
    mirrored = set()
    for view in range(6):
        top, left, flip = crop_and_flip(5, Draw(0, view), 32)
        crop = whole[top : top + 224, left : left + 224]
        assert torch.equal(views[Draw(0, view)].inputs, crop.flip(1) if flip else crop)
        mirrored.add(flip)
    assert mirrored == {True, False}
    assert torch.equal(views[Draw(0, -1)].inputs, torch.from_numpy(resize(decode(sample.path), 224, 224)))
