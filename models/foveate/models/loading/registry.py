"""The registry of model loaders."""

from typing import Any

from foveate.models.loading.chat_models import ChatModelLoader
from foveate.models.loading.clip_loading import VideoModelLoader
from foveate.models.loading.loader import ModelLoader
from foveate.models.loading.opaque_models import ElasticOrOpaqueLoader
from foveate.models.loading.photo_models import PhotoLoader
from foveate.models.loading.transformers_models import TransformersLoader

LOADERS: tuple[ModelLoader[Any], ...] = (
    PhotoLoader(), ChatModelLoader(), TransformersLoader(), VideoModelLoader(), ElasticOrOpaqueLoader(),
)  # fmt: skip
"""In the order in which they are asked. The last one accepts every name."""


def loader_for(name: str) -> ModelLoader[Any]:
    """The loader of the model of this name."""
    return next(loader for loader in LOADERS if loader.accepts(name))
