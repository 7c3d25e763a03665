"""Where the bench clicks, and what it measures."""

import base64
import io
from urllib.parse import urlsplit

import numpy as np
import orjson
import pytest
from PIL import Image

from loadtests.tasks.clicking import enlarged, innermost, iou, measure, ratio
from tests.support.scripted_server import http, scripted_server


def test_the_innermost_pixel_is_the_middle_of_a_square() -> None:
    region = np.zeros((40, 60), bool)
    region[10:21, 30:41] = True
    region[2, 2] = True
    assert innermost(region) == (35, 15)


def test_iou_is_the_overlap_over_the_union() -> None:
    first, second = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
    first[:, :2], second[:, 1:3] = True, True
    assert iou(first, second) == pytest.approx(2 / 6)


def test_the_ratio_is_a_median_of_ratios() -> None:
    assert ratio((1.0, 4.0, 9.0), (1.0, 2.0, 3.0)) == 2


def test_an_enlarged_image_has_the_size() -> None:
    file = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(file, "JPEG")
    assert Image.open(io.BytesIO(enlarged(file.getvalue()))).size == (640, 480)


def test_each_image_gets_a_second_click_with_the_first() -> None:
    mask = io.BytesIO()
    Image.fromarray(np.full((480, 640), 255, np.uint8)).save(mask, "PNG")
    data = base64.b64encode(mask.getvalue()).decode()
    answer = orjson.dumps({"mask": f"data:image/png;base64,{data}", "timings_ms": {"compute": 2.0}})
    with scripted_server(lambda _: http(200, answer)) as server:
        clicks = measure(f"http://127.0.0.1:{server.port}", images=3)
        paths = [urlsplit(request.split(b" ")[1].decode()).query for request in server.requests]
    assert clicks.first_compute_ms == clicks.second_compute_ms == 2
    assert clicks.compute_speedup == 1
    assert 0 < clicks.iou_first < 1
    assert len(paths) % 2 == 0 and paths
    for first, second in zip(paths[::2], paths[1::2], strict=True):
        assert second.startswith(f"{first};") and second.endswith(",0"), "the error is background"
