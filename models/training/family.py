"""The cards of the classifiers that this project trains and ships."""

from foveate.core.model import InputSpec
from foveate.models.layers.config import ViTConfig
from foveate.models.zoo import CheckpointCard
from training.images import MEAN, STD
from training.labels import LABELS


def _card(name: str, config: ViTConfig, shape: str) -> CheckpointCard:
    return CheckpointCard(
        name=name,
        config=config,
        labels=LABELS,
        input=InputSpec(crop_pct=1.0, crop_mode="center", interpolation="bicubic"),
        mean=(MEAN,) * 3,
        std=(STD,) * 3,
        description=f"{shape}: classifies {len(LABELS)} emoji in synthetic scenes, not photographs",
        licence="Apache-2.0",
        source="trained by this project (models/training) on scenes drawn with Noto Color Emoji, OFL-1.1",
    )


FAMILY = {
    card.name: card
    for card in (
        _card("vit-t", ViTConfig(classes=len(LABELS)), "ViT-Ti/16"),
        _card("vit-xs", ViTConfig(width=128, heads=2, depth=8, classes=len(LABELS)), "8 blocks of width 128"),
    )
}
