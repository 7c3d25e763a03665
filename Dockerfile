# syntax=docker/dockerfile:1
# One server: gateway and engine in one process. torch comes from the default package index, with CUDA; an index of
# its CPU builds as TORCH_INDEX makes an image for machines without a GPU a fraction as large.
FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY core core
COPY gateway gateway
COPY models models
COPY services services
RUN python -m venv /opt/foveate \
    && /opt/foveate/bin/pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.11" \
    && /opt/foveate/bin/pip install --no-cache-dir ".[torch,redis]"

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --no-create-home foveate
COPY --from=build /opt/foveate /opt/foveate
# The root file system may be read-only: what is measured once a machine, and long clips, lie in /tmp.
ENV PATH=/opt/foveate/bin:$PATH XDG_CACHE_HOME=/tmp/cache PYTHONDONTWRITEBYTECODE=1 FOVEATE_HOST=0.0.0.0
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
ENTRYPOINT ["foveate"]
CMD ["serve"]
