"""Media in formats that are not supported, as their programs write them."""

import io
from collections.abc import Callable

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.stream import VideoStream
from PIL import Image


def film(container: str, codec: str) -> bytes:
    """A clip of ten frames."""
    file = io.BytesIO()
    with av.open(file, "w", container) as output:
        stream = output.add_stream(codec, rate=25)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((96, 160, 3), 20 * number, np.uint8))
            frame.pts = number
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def sound(container: str, codec: str) -> bytes:
    """A second of silence."""
    file = io.BytesIO()
    with av.open(file, "w", container) as output:
        stream = output.add_stream(codec, rate=48000)
        assert isinstance(stream, AudioStream)
        stream.layout = "mono"
        stream.codec_context.open()
        size = stream.codec_context.frame_size or 1024
        form = stream.codec_context.format.name
        for number in range(20):
            kind = {"s16": np.int16, "s16p": np.int16, "s32": np.int32, "s32p": np.int32}.get(
                form, np.float32
            )
            frame = av.AudioFrame.from_ndarray(np.zeros((1, size), kind), form, "mono")
            frame.sample_rate, frame.pts = 48000, number * size
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def image(kind: str) -> bytes:
    """A picture, written by Pillow."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, kind)
    return file.getvalue()


UNSUPPORTED: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "mpegts": (lambda: film("mpegts", "libx264"), "video/mp2t", "MPEG-TS is not supported; send MP4"),
    "flv": (lambda: film("flv", "flv"), "video/x-flv", "FLV is not supported; send MP4"),
    "asf": (lambda: film("asf", "wmv2"), "video/x-ms-wmv", "Windows Media (WMV) is not supported; send MP4"),
    "mpeg": (lambda: film("mpeg", "mpeg2video"), "video/mpeg", "MPEG-PS is not supported; send MP4"),
    "mpeg-2 stream": (lambda: film("mpeg2video", "mpeg2video"), "video/mpeg", "is not supported; send MP4"),
    "h264 stream": (lambda: film("h264", "libx264"), "video/h264", "video/h264 is not supported; send MP4"),
    "ogg": (lambda: sound("ogg", "libopus"), "video/ogg", "Ogg is not supported; send MP4"),
    "mp3": (lambda: sound("mp3", "libmp3lame"), "video/mpeg", "MP3 is not supported; send an image"),
    "wav": (lambda: sound("wav", "pcm_s16le"), "video/mp4", "audio/wav is not supported"),
    "flac": (lambda: sound("flac", "flac"), "video/mp4", "audio/flac is not supported"),
    "pdf": (lambda: image("PDF"), "image/jpeg", "application/pdf is not supported; send JPEG"),
    "svg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', "image/svg+xml", "image/svg+xml is not"),
    "avif": (lambda: image("AVIF"), "image/avif", "image/avif is not supported; send JPEG"),
    "heic": (lambda: b"\0\0\0\x18ftypheic" + bytes(40), "image/heic", "image/heic is not supported"),
    "jpeg 2000": (lambda: image("JPEG2000"), "image/jp2", "is not supported; send JPEG"),
    "ico": (lambda: image("ICO"), "image/x-icon", "is not supported; send JPEG"),
    "portable pixmap": (lambda: image("PPM"), "image/x-portable-pixmap", "is not supported; send JPEG"),
}  # fmt: skip
"""How the file is made, the content type that programs send it under, and what the error says."""
