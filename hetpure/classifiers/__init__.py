"""Image classifiers: pixels [0, 1] in, logits out."""

from hetpure.classifiers.classifier import Classifier
from hetpure.classifiers.wide_resnet import WideResNet

__all__ = ["Classifier", "WideResNet"]
