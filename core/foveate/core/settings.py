"""Settings, read once in the entry point from flags and FOVEATE_* variables, and passed down."""

import logging
import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

log = logging.getLogger(__name__)

MIB = 2**20
PREFIX = "FOVEATE_"
RENAMED = {
    "patience_s": "default_deadline_s",
    "body_s": "body_timeout_s",
    "video_body_s": "video_body_timeout_s",
    "drain_s": "drain_timeout_s",
    "scale_start_s": "scale_replica_startup_s",
    "scale_calm_s": "scale_downscale_delay_s",
    "scale_every_s": "scale_interval_s",
}
"""Old names of settings. They work for one release, with a warning."""


class SloClass(BaseModel):
    """A promise that has a name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    deadline_ms: float | None = Field(default=None, gt=0, le=3_600_000)
    """Milliseconds from the arrival of a request to its answer at most; none: no deadline."""
    min_quality: float = Field(default=0.0, ge=0, le=1)
    """Share of full accuracy that an answer must keep."""
    priority: int = Field(default=0, ge=-9, le=9)
    """Each step brings the virtual deadline of a request forward; a negative step moves it back."""


class Settings(BaseSettings):
    """Everything an operator may set. Each field is also an environment variable, as FOVEATE_PORT."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True)

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 listens on all interfaces."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0: any free port."""
    models: Annotated[tuple[str, ...], NoDecode] = ("vit-t", "vit-t-seg", "vit-t-clip")
    """Names or paths, commas between them; the first of a task answers requests that name none."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the forward; auto: measured once a machine, fp32 unless another one is faster and
    keeps the answers."""
    plan: str = "auto"
    """The plan of requests to the first model that pin none; auto: what the policy chooses."""
    policy: Literal["slo", "fifo"] = "slo"
    """slo: as good as time allows, and refused at once where it does not. fifo: what a plain batching
    server does, first come, first served, at one plan."""
    slo_classes: dict[str, SloClass] = Field(default_factory=dict)
    """Promises by name, as JSON: {"interactive": {"deadline_ms": 200, "min_quality": 0.95}}."""
    default_slo_classes: dict[str, str] = Field(default_factory=dict)
    """The class of requests that name none, by route: {"/classify": "interactive"}."""
    max_priority: int = Field(default=0, ge=0, le=9)
    """Priorities that clients ask for are cut to this."""
    tenant_header: str = ""
    """The header that says whose a request is, as a trusted proxy sets it; empty: nobody is told apart."""
    default_deadline_s: float = Field(default=1.0, gt=0)
    """What is waited for without a deadline is served as if it had one so far off."""
    device: str = "auto"
    """Where models run: cpu, cuda, or auto, which takes a GPU where torch finds one."""
    threads: int = Field(default=0, ge=0)
    """Threads of one forward; 0: as many as the machine has cores."""
    decode_threads: int = Field(default=2, ge=1)
    """Pictures decoded at once, besides one large one."""
    max_batch: int = Field(default=0, ge=0)
    """Requests in a batch at most; 0: what suits the device."""
    queue_items: int = Field(default=1024, ge=1)
    """Requests that wait for a batch at most, of each model."""
    queue_bytes: int = Field(default=256 * MIB, ge=1)
    """Decoded media of waiting requests at most, of each model."""
    in_flight_items: int = Field(default=2048, ge=1)
    """Requests read, decoded, waiting or running at most, all models together."""
    in_flight_bytes: int = Field(default=512 * MIB, ge=1)
    """Request bodies held at most."""
    max_body_bytes: int = Field(default=20 * MIB, ge=1)
    """Request body at most, clips excepted."""
    body_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds a body may take to arrive where no deadline is shorter."""
    max_pixels: int = Field(default=50_000_000, ge=1)
    """Pixels of a picture at most. Decoding one takes up to 12 bytes a pixel, JPEG far less."""
    max_video_bytes: int = Field(default=512 * MIB, ge=1)
    """Of a clip at most. What is over 4 MiB lies on disk while it is read."""
    video_body_timeout_s: float = Field(default=300.0, gt=0)
    """Seconds a clip may take to arrive where no deadline is shorter."""
    spool_bytes: int = Field(default=2048 * MIB, ge=1)
    """Clips on disk at most, all requests together."""
    max_clip_s: float = Field(default=3600.0, gt=0)
    """Seconds a clip may last."""
    max_video_pixels: int = Field(default=4096 * 2304, ge=1)
    """Pixels of a clip's pictures at most. A decoder may keep 16 of them, at 2 to 6 bytes a pixel."""
    clip_decode_s: float = Field(default=20.0, gt=0)
    """Seconds that decoding one clip may take."""
    feature_bytes: int = Field(default=64 * MIB, ge=0)
    """What is kept of pictures that were segmented or clicked on, about 400 kB a picture; 0 keeps nothing."""
    cache: str = "memory"
    """Where answers are kept: memory, of this process, or redis://HOST:PORT/DB, which processes share."""
    cache_bytes: int = Field(default=64 * MIB, ge=0)
    """Of answers in memory, and sixteen times the largest that is kept anywhere. 0 keeps none."""
    cache_ttl_s: float = Field(default=300.0, gt=0)
    """Seconds an answer is kept."""
    cache_timeout_s: float = Field(default=0.05, gt=0)
    """Seconds that a request waits for a shared cache at most."""
    cluster: Literal["local", "ray"] = "local"
    """Where models run: in this process, or in workers on Ray Serve."""
    ray_address: str = ""
    """Of a Ray cluster that runs already, as in auto or 10.0.0.1:6379; empty: one that is started with the
    server and ends with it."""
    gateways: int = Field(default=1, ge=1)
    """On Ray, processes that take requests, read media and draw answers."""
    gateway_cpus: float = Field(default=1.0, ge=0)
    """On Ray, what each of them books of a node."""
    gateway_resources: dict[str, float] = Field(default_factory=dict)
    """On Ray, what else a gateway's node must have, as JSON: {"gateway": 0.001}."""
    replicas: int = Field(default=1, ge=1)
    """On Ray, workers of each model; at least, where there may be more."""
    max_replicas: int = Field(default=1, ge=1)
    """On Ray, as many as full quality may need of each model."""
    replica_cpus: float = Field(default=1.0, ge=0)
    """On Ray, CPUs that each worker reserves on a node."""
    replica_gpus: float = Field(default=0.0, ge=0)
    """On Ray, what each worker books of a node; a share of a GPU where several share one."""
    replica_resources: dict[str, float] = Field(default_factory=dict)
    """On Ray, what else a worker's node must have, as JSON: {"accelerator_type:L4": 0.001}."""
    scale_utilisation: float = Field(default=0.75, gt=0, le=1)
    """Share of a worker that answers at full may fill before there is another one."""
    scale_replica_startup_s: float = Field(default=30.0, gt=0)
    """Seconds until a new worker serves."""
    scale_downscale_delay_s: float = Field(default=300.0, gt=0)
    """Seconds of less before workers are taken away."""
    scale_interval_s: float = Field(default=5.0, gt=0)
    """Seconds between two looks at the demand."""
    drain_timeout_s: float = Field(default=30.0, ge=0)
    """Seconds a SIGTERM waits for admitted requests."""
    traces: str = ""
    """Where traces are sent: an OTLP collector, as http://127.0.0.1:4318/v1/traces; empty: none are made."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe messages that are logged."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then the environment under old names."""
        return init_settings, env_settings, _RenamedVariables(settings_cls)

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        """Accept old names of settings and of the SLO policy, with one warning each."""
        return renamed(values) if isinstance(values, Mapping) else values

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """A variable holds one text; flags come as a tuple already."""
        return tuple(filter(None, value.split(","))) if isinstance(value, str) else value

    @field_validator("cache")
    @classmethod
    def _somewhere(cls, value: str) -> str:
        if value != "memory" and not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("answers are kept in memory, or at redis://HOST:PORT/DB")
        return value

    @field_validator("models")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("name at least one model, and each only once")
        return value

    @model_validator(mode="after")
    def _named(self) -> Self:
        unknown = sorted(set(self.default_slo_classes.values()) - set(self.slo_classes))
        if unknown:
            raise ValueError(f"there is no SLO class {unknown[0]!r}")
        return self


class _RenamedVariables(PydanticBaseSettingsSource):
    """Environment variables under the old names of settings."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        names = {old: f"{PREFIX}{old.upper()}" for old in RENAMED}
        return {old: os.environ[name] for old, name in names.items() if name in os.environ}


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values under the current names of settings. Logs a warning for each old name or old value.

    A value under the current name wins over one under the old name.
    """
    current = {name: value for name, value in values.items() if name not in RENAMED}
    for old in sorted(values.keys() & RENAMED.keys()):
        new = RENAMED[old]
        log.warning(
            "the setting %s (%s%s) is now called %s (%s%s); the old name works for one more release",
            old, PREFIX, old.upper(), new, PREFIX, new.upper(),
        )  # fmt: skip
        current.setdefault(new, values[old])
    if current.get("policy") == "promise":
        log.warning("the policy 'promise' is now called 'slo'; the old name works for one more release")
        current["policy"] = "slo"
    return current
