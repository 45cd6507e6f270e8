"""What several tests of the engine start from."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Run folder of an untrained classifier of cats and dogs."""
    from wsol.models.classifier import load_classifier, save_classifier

    folder = tmp_path_factory.mktemp("model")
    classifier = load_classifier("test_resnet", num_classes=2, img_size=64)
    save_classifier(classifier, folder, classes=("cat", "dog"), multi_label=False)
    return folder
