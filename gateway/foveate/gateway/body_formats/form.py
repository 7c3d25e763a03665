"""Multipart forms (RFC 7578), parsed as they arrive: the part `file` holds the media, the others options."""

import logging
from collections.abc import Sequence

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from foveate.core.errors import BadRequest
from foveate.gateway.body import FORM_TYPE

MAX_OVERHEAD_BYTES = 2**17
"""Bytes of a form beside its file at most: boundaries, headers and text fields."""
FILE_NAMES = ("image", "images", "img", "photo", "picture", "video", "clip", "data", "files", "upload")
"""Names under which clients of other servers send the media."""
SILENT = logging.Logger("forms", logging.CRITICAL)
"""The parser's log. Its warnings would repeat to the operator what the client gets as the reason."""
PLAIN_ENCODINGS = ("", "binary", "8bit", "7bit")


class FormParser:
    """The state of one form while it arrives."""

    def __init__(self, content_type: str) -> None:
        """content_type: the header, whose parameter `boundary` separates the parts. Raises BadRequest."""
        self.fields: list[tuple[str, str]] = []
        """Names and values of the text fields so far."""
        self._total = self._file_bytes = 0
        self._has_file = self._ended = False
        self._name = ""
        """The name of the part that arrives now."""
        self._header_name = self._header_value = b""
        self._headers: dict[bytes, bytes] = {}
        self._text = bytearray()
        self._pieces: list[bytes] = []
        # A charset in the content type is ignored: some codecs of Python take quadratic time.
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        if not boundary:
            raise BadRequest(f"content-type {FORM_TYPE} needs a boundary; let the HTTP client set it")
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_header_field": self._on_header_name,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers,
                    "on_part_data": self._on_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise unparsable(error) from None
        self._parser.logger = SILENT

    def feed(self, chunk: bytes) -> Sequence[bytes]:
        """Parse the next bytes of the form: the bytes of the file that they hold. Raises BadRequest."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise unparsable(error) from None
        pieces, self._pieces = self._pieces, []
        self._total += len(chunk)
        self._file_bytes += sum(map(len, pieces))
        if self._total - self._file_bytes > MAX_OVERHEAD_BYTES:
            raise BadRequest(f"the form has over {MAX_OVERHEAD_BYTES} bytes beside its file")
        return pieces

    def finish(self) -> None:
        """Check that the form is complete, after its last bytes. Raises BadRequest."""
        if not self._total:
            return  # the caller refuses a body without media
        if not self._ended:
            raise BadRequest("the multipart form ends before its last boundary")
        if not self._has_file:
            raise BadRequest("the form has no part 'file'; send the image or clip in a part of that name")
        if not self._file_bytes:
            raise BadRequest("the part 'file' of the form is empty; send an image or a clip in it")

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _on_headers(self) -> None:
        headers, self._headers = self._headers, {}
        disposition, parameters = parse_options_header(headers.get(b"content-disposition"))
        if disposition != b"form-data" or b"name" not in parameters:
            raise BadRequest('each part of a form needs content-disposition: form-data; name="..."')
        self._name = parameters[b"name"].decode("utf-8", "replace")
        encoding = headers.get(b"content-transfer-encoding", b"").decode("latin-1").strip().lower()
        if encoding not in PLAIN_ENCODINGS:
            raise BadRequest(
                f"the form part {self._name[:60]!r} has the content-transfer-encoding {encoding[:20]!r};"
                " send the bytes themselves"
            )
        if self._name == "file":
            if self._has_file:
                raise BadRequest("the form has two parts 'file'; send one image or clip a request")
            self._has_file = True
        elif b"filename" in parameters or self._name.lower().removesuffix("[]") in (*FILE_NAMES, "file"):
            raise BadRequest(
                f"the form has a part {self._name[:60]!r}; send the image or clip in a part named 'file'"
            )

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == "file":
            self._pieces.append(data[start:end])
        else:
            self._text += data[start:end]

    def _on_part_end(self) -> None:
        if self._name == "file":
            return
        try:
            self.fields.append((self._name, self._text.decode()))
        except UnicodeDecodeError:
            raise BadRequest(f"the form field {self._name[:60]!r} is not UTF-8 text") from None
        self._text.clear()

    def _on_end(self) -> None:
        self._ended = True


def unparsable(error: FormParserError) -> BadRequest:
    """The error for a form that does not parse, with the parser's reason."""
    return BadRequest(f"the multipart form does not parse: {str(error)[:120]}")
