# syntax=docker/dockerfile:1
# The default target is one server with the gateway and the engine in one process. `--target ray` is a Ray node for
# models. `--target ray-gateway` is a Ray node for gateways, which need no torch. torch comes from the default package
# index, with CUDA. For machines without a GPU, set TORCH_INDEX to an index of CPU builds: the image is much smaller.
FROM python:3.11-slim-bookworm AS source
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY core core
COPY gateway gateway
COPY models models
COPY services services
RUN python -m venv /opt/foveate

FROM source AS torch
ARG TORCH_INDEX
RUN /opt/foveate/bin/pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.11"

FROM torch AS build
RUN /opt/foveate/bin/pip install --no-cache-dir ".[torch,photos,transformers,redis,otel]"

FROM torch AS build-ray
# The same version as rayVersion in k8s/ray.
ARG RAY=2.60.0
RUN /opt/foveate/bin/pip install --no-cache-dir ".[torch,photos,transformers,ray,redis,otel]" "ray[serve]==$RAY"

FROM source AS build-ray-gateway
ARG RAY=2.60.0
RUN /opt/foveate/bin/pip install --no-cache-dir ".[ray,redis,otel]" "ray[serve]==$RAY"

FROM python:3.11-slim-bookworm AS base
RUN useradd --system --uid 10001 --no-create-home foveate
# The root file system may be read-only. Measurements of the machine and long video clips are stored in /tmp.
ENV PATH=/opt/foveate/bin:$PATH XDG_CACHE_HOME=/tmp/cache PYTHONDONTWRITEBYTECODE=1 FOVEATE_HOST=0.0.0.0

FROM base AS ray-base
# KubeRay's probes use wget. Some KubeRay versions start Ray from a login shell, which resets PATH.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/* \
    && ln -s /opt/foveate/bin/ray /usr/local/bin/ray
# The environment of the replicas of serveConfigV2: each Ray process reads these variables.
ENV RAY_SERVE_THROUGHPUT_OPTIMIZED=1 RAY_SERVE_ENABLE_HA_PROXY=1 RAY_USAGE_STATS_ENABLED=0 HOME=/tmp \
    RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH=1073741824 RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S=30 \
    RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S=3600
USER 10001
EXPOSE 6379 8000 8265
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD ["wget", "-q", "-T", "2", "-O", "-", "http://127.0.0.1:52365/api/local_raylet_healthz"]
CMD ["ray", "start", "--head", "--block"]

FROM ray-base AS ray-gateway
COPY --from=build-ray-gateway /opt/foveate /opt/foveate

FROM ray-base AS ray
COPY --from=build-ray /opt/foveate /opt/foveate

FROM base AS server
COPY --from=build /opt/foveate /opt/foveate
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
ENTRYPOINT ["foveate"]
CMD ["serve"]
