"""Image classifiers: pixels [0, 1] in, logits out."""

from hetpure.classifiers.classifier import Classifier
from hetpure.classifiers.deepmind_wide_resnet import DeepMindWideResNet
from hetpure.classifiers.features import LastFeatures
from hetpure.classifiers.folding import FoldedClassifier
from hetpure.classifiers.meliketoy_wide_resnet import MeliketoyWideResNet
from hetpure.classifiers.resnet import ResNet
from hetpure.classifiers.vision_transformer import VisionTransformer
from hetpure.classifiers.wide_resnet import WideResNet

__all__ = [
    "Classifier",
    "DeepMindWideResNet",
    "FoldedClassifier",
    "LastFeatures",
    "MeliketoyWideResNet",
    "ResNet",
    "VisionTransformer",
    "WideResNet",
]
