"""A run of vit-t-chat becomes the files of a model that computes the same."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from foveate.core.chat import ImagePart, SamplingOptions, Turn
from foveate.core.plan import Plan
from foveate.models.vlm import checkpoint
from foveate.models.vlm.generation import prefill
from foveate.models.vlm.runner import ChatRunner
from foveate.models.weights import hub
from tests.support import chat_models

pytest.importorskip("cv2")

from training.chat import ChatTraining
from training.chat_batches import pack
from training.chat_cache import patch_features
from training.chat_trunk import EARLY_BLOCK, MultiTrunk
from training.questions import KINDS, Question
from training.ship_chat import NAME, ship, ship_logs

MAX_BYTES = 12_000_000


@pytest.mark.usefixtures("inference_on_one_thread")
def test_a_run_is_shipped(tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "zoo"
    run.mkdir()
    folder.mkdir()
    words = chat_models.tokenizer(1024)
    words.tokenizer.save(str(run / "tokenizer.json"))
    training = ChatTraining(words, blind=False)
    trunk = hub.load("vit-t")
    tuned = MultiTrunk(hub.load("vit-t").model)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter) * 0.01)
    torch.save({"head": training.state_dict()}, run / "chat.pt")
    torch.save({"head": tuned.state_dict()}, run / "trunk.pt")
    ship(run, folder)
    assert sum(file.stat().st_size for file in folder.iterdir()) < MAX_BYTES
    read = checkpoint.read(NAME, folder, trunk=trunk)
    assert (read.card.trunk, read.card.early_block) == ("vit-t", EARLY_BLOCK)
    assert read.card.sizes == (224, 160)
    original = training.model.state_dict()
    for name, value in read.model.state_dict().items():
        assert value.equal(original[name].half().float())
    # The tower computes the features that the training reads from its cache.
    image = torch.randint(0, 256, (1, 224, 224, 3), dtype=torch.uint8)
    expected = patch_features(tuned.eval(), image)
    pixels = (image.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    features = read.tower(pixels).patches
    similarity = torch.cosine_similarity(features[..., :192], expected[..., :192], -1)
    assert similarity.mean() > 0.999
    assert torch.cosine_similarity(features[..., 192:], expected[..., 192:], -1).mean() > 0.99
    # At 160 pixels too.
    small = image[:, :160, :160]
    expected = patch_features(tuned, small)
    features = read.tower(pixels[..., :160, :160]).patches
    assert features.shape == expected.shape == (1, 100, 384)
    assert torch.cosine_similarity(features, expected, -1).mean() > 0.99
    # And the shipped model answers.
    runner = ChatRunner(read, slots=1, slot_tokens=256)
    turns = (Turn("user", (ImagePart(), "what is left of the fox?")),)
    costs = {"full": (196, 1.25), "vit-t-chat/pool:49": (49, 1.25), "vit-t-chat@160/pool:16": (16, 0.6)}
    for plan, (count, gflops) in costs.items():
        answer = runner.answer([image[0].numpy()], turns, Plan.parse(plan, runner.full), SamplingOptions(3))
        assert answer.visual_tokens == count
        assert answer.cost.encoder == pytest.approx(gflops, rel=0.06)
    # Its scores are those of the training's own forward.
    training.model.load_state_dict(read.model.state_dict())
    asked = Question("relation", "what is left of the fox?", "a teacup")
    text = pack([[asked]], words, 2)
    place = len(words.encode(asked.text)) + 1
    for name in ("pool:49", "vit-t-chat@160/pool:49"):
        pool = Plan.parse(name, runner.full)
        encoded = runner.encode(image, pool)
        visual = training.visual(encoded[0].patches[None], (7, 7), None)
        scores = training.model.logits(training.hidden(visual, (), text))[0, place]
        prompt = runner.prompt(turns, runner.visual_tokens(encoded, pool, [asked.text]))
        slot = runner.cache.allocate()
        own = prefill(runner.model, runner.cache, [prompt], [slot])[0]
        runner.cache.free(slot)
        torch.testing.assert_close(own, scores, rtol=0, atol=1e-4)
        assert own.std() > 0.01


def test_the_logs_are_shipped_with_their_curve(tmp_path: Path) -> None:
    run, docs = tmp_path / "run", tmp_path / "docs"
    run.mkdir()
    docs.mkdir()
    shares = dict.fromkeys((*KINDS, "mean"), 0.5)
    rows = [{"step": 50, "loss": 2.0}, *({"step": step, "loss": 1.0} | shares for step in (100, 200))]
    for name in ("chat", "chat-blind"):
        (run / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    ship_logs(run, docs)
    for log in (f"{NAME}.jsonl", f"{NAME}-blind.jsonl"):
        assert [json.loads(line) for line in (docs / log).read_text().splitlines()] == rows
    with Image.open(docs / f"{NAME}.png") as curve:
        assert curve.width > 500
