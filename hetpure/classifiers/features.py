"""What a classifier thinks of an image before it decides."""

from torch import Tensor, nn

from hetpure.classifiers.classifier import Classifier
from hetpure.errors import InputError


class LastFeatures(nn.Module):
    """What a classifier's last linear layer reads, for images in pixel [0, 1]: (B, features)."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier.eval()
        linear = [
            module for module in classifier.network.modules() if isinstance(module, nn.Linear)
        ]
        if not linear:
            raise InputError("features are those of a last linear layer: the classifier has none")
        self.last = linear[-1]
        self.num_features = self.last.in_features

    def forward(self, images: Tensor) -> Tensor:
        features: list[Tensor] = []
        with self.last.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0])):
            self.classifier(images)
        return features[0].flatten(1)
