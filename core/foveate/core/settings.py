"""Settings, read once in the entry point from flags and FOVEATE_* variables, and passed down."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MIB = 2**20


class Settings(BaseSettings):
    """Everything an operator may set. Each field is also an environment variable, as FOVEATE_PORT."""

    model_config = SettingsConfigDict(env_prefix="FOVEATE_", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    models: Annotated[tuple[str, ...], NoDecode] = ("vit-t",)
    """Names or paths, commas between them; the first answers requests that name none."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    plan: str = "full"
    """The plan of requests that pin none."""
    device: str = "auto"
    threads: int = Field(default=0, ge=0)
    """Threads of one forward; 0: as many as the machine has cores."""
    decode_threads: int = Field(default=2, ge=1)
    """Pictures decoded at once, besides one large one."""
    max_batch: int = Field(default=0, ge=0)
    """Requests in a batch at most; 0: what suits the device."""
    queue_items: int = Field(default=256, ge=1)
    queue_bytes: int = Field(default=256 * MIB, ge=1)
    in_flight_items: int = Field(default=1024, ge=1)
    """Requests read, decoded, waiting or running at most, all models together."""
    in_flight_bytes: int = Field(default=512 * MIB, ge=1)
    """Request bodies held at most."""
    max_body_bytes: int = Field(default=20 * MIB, ge=1)
    body_s: float = Field(default=30.0, gt=0)
    """Seconds a body may take to arrive where no deadline is shorter."""
    max_pixels: int = Field(default=50_000_000, ge=1)
    """Pixels of a picture at most. Decoding one takes up to 12 bytes a pixel, JPEG far less."""
    drain_s: float = Field(default=30.0, ge=0)
    """Seconds a SIGTERM waits for admitted requests."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """A variable holds one text; flags come as a tuple already."""
        return tuple(filter(None, value.split(","))) if isinstance(value, str) else value

    @field_validator("models")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("name at least one model, and each only once")
        return value
