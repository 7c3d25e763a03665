"""Draw the shipped scenes with questions: `python -m training.heldout_questions`.

Their backgrounds and the wordings of their questions are in no training batch. Their scenes are not those of
the checks that a training logs.
"""

import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

from PIL import Image

from training.heldout import EPOCH, ZOO
from training.multi_scenes import MultiScene, draw_multi
from training.questions import SHARES, draw_questions, one_of_each

SCENES = 640
FIRST = 100_000
"""Number of the first scene. The checks of a training use those from 0 on."""
QUESTIONS = 8
JPEG_QUALITY = 92


def jpeg(scene: MultiScene) -> bytes:
    """The image as JPEG."""
    out = io.BytesIO()
    Image.fromarray(scene.image).save(out, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return out.getvalue()


def questions_about(scene: MultiScene, rng: random.Random) -> list[dict[str, str]]:
    """One question of each kind that the scene allows, and more up to QUESTIONS."""
    asked = {question.text: question for question in one_of_each(scene.objects, rng, "heldout")}
    for question in draw_questions(scene.objects, rng, SHARES, 2 * QUESTIONS, "heldout"):
        if len(asked) < QUESTIONS:
            asked.setdefault(question.text, question)
    return [{"kind": q.kind, "question": q.text, "answer": q.answer} for q in asked.values()]


def write_questions(path: Path, scenes: int = SCENES) -> None:
    """Write an archive of images, with one JSON file of scene graphs and questions."""
    rows: list[dict[str, Any]] = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for index in range(scenes):
            scene = draw_multi("heldout", FIRST + index)
            archive.writestr(zipfile.ZipInfo(f"{index:04d}.jpg", EPOCH), jpeg(scene))
            rows.append(
                {
                    "objects": [item.to_json() for item in scene.objects],
                    "questions": questions_about(scene, random.Random(FIRST + index)),
                }
            )
        info = zipfile.ZipInfo("questions.json", EPOCH)
        info.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(info, json.dumps({"scenes": rows}))


if __name__ == "__main__":
    write_questions(ZOO / "heldout-questions.zip")
