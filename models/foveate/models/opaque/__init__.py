"""Opaque classifiers: networks that run as they are, whose plans change the image size or the variant."""
