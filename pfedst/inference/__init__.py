"""Use a trained model: predict, export and load it. This package needs no training image and no Lightning."""
