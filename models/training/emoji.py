"""The object classes and their sprites: colour emoji of the Noto Color Emoji font."""

from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
RENDER_SIZE = 109  # The one size at which the font holds its bitmaps.

# Look-alikes stand together: they are what keeps the task from being solved by colour alone.
CLASSES: dict[str, str] = {
    "red apple": "🍎", "green apple": "🍏", "peach": "🍑", "cherries": "🍒", "tomato": "🍅",
    "tangerine": "🍊", "lemon": "🍋", "pear": "🍐", "mango": "🥭", "grapes": "🍇",
    "strawberry": "🍓", "pineapple": "🍍", "banana": "🍌", "watermelon": "🍉", "kiwi": "🥝",
    "avocado": "🥑", "aubergine": "🍆", "carrot": "🥕", "corn": "🌽", "broccoli": "🥦",
    "mushroom": "🍄", "bread": "🍞", "croissant": "🥐", "cheese": "🧀", "hamburger": "🍔",
    "pizza": "🍕", "hot dog": "🌭", "doughnut": "🍩", "cookie": "🍪", "birthday cake": "🎂",
    "shortcake": "🍰", "ice cream": "🍨", "teacup": "🍵", "hot beverage": "☕", "beer mug": "🍺",
    "wine glass": "🍷", "dog face": "🐶", "wolf": "🐺", "fox": "🦊", "cat face": "🐱",
    "tiger face": "🐯", "lion": "🦁", "bear": "🐻", "panda": "🐼", "koala": "🐨",
    "pig face": "🐷", "cow face": "🐮", "mouse face": "🐭", "hamster": "🐹", "rabbit face": "🐰",
    "frog": "🐸", "monkey face": "🐵", "chick": "🐤", "penguin": "🐧", "owl": "🦉",
    "eagle": "🦅", "duck": "🦆", "rooster": "🐓", "parrot": "🦜", "flamingo": "🦩",
    "dolphin": "🐬", "whale": "🐳", "shark": "🦈", "tropical fish": "🐠", "blowfish": "🐡",
    "octopus": "🐙", "crab": "🦀", "lobster": "🦞", "snail": "🐌", "butterfly": "🦋",
    "honeybee": "🐝", "lady beetle": "🐞", "spider": "🕷", "turtle": "🐢", "snake": "🐍",
    "elephant": "🐘", "giraffe": "🦒", "zebra": "🦓", "horse": "🐎", "camel": "🐪",
    "automobile": "🚗", "taxi": "🚕", "bus": "🚌", "fire engine": "🚒", "ambulance": "🚑",
    "police car": "🚓", "tractor": "🚜", "bicycle": "🚲", "motor scooter": "🛵", "locomotive": "🚂",
    "airplane": "✈", "helicopter": "🚁", "rocket": "🚀", "sailboat": "⛵", "soccer ball": "⚽",
    "basketball": "🏀", "baseball": "⚾", "tennis ball": "🎾", "guitar": "🎸", "violin": "🎻",
    "trumpet": "🎺", "drum": "🥁", "umbrella": "☂", "key": "🔑",
}  # fmt: skip
LABELS: tuple[str, ...] = tuple(CLASSES)


@cache
def sprite(label: str) -> np.ndarray:
    """The class's picture: float32 RGBA in 0..1, premultiplied, cropped to its ink."""
    if not FONT.exists():
        raise SystemExit(f"{FONT} is missing: apt-get install fonts-noto-color-emoji")
    font = ImageFont.truetype(str(FONT), RENDER_SIZE)
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((12, 12), CLASSES[label], font=font, embedded_color=True)
    box = canvas.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()
    if box is None:
        raise SystemExit(f"the font draws nothing for {label}")
    rgba = np.asarray(canvas.crop(box), np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    return rgba


@cache
def sprites(label: str) -> tuple[np.ndarray, ...]:
    """The sprite at full, three-quarter and half size, so that shrinking it does not alias."""
    full = sprite(label)
    sizes = [(round(full.shape[1] * s), round(full.shape[0] * s)) for s in (0.75, 0.5)]
    return (full, *(cv2.resize(full, size, interpolation=cv2.INTER_AREA) for size in sizes))
