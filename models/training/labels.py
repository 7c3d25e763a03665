"""The object classes of the scenes, and the emoji that shows each of them."""

# Look-alikes stand together. Because of them, colour alone does not solve the task.
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
