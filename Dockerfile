# CPU:   docker build -t feedgym .
# CUDA:  docker build -t feedgym --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Bases without Python get their own; gcc is for packages without a wheel. Debian's mirrors keep only the newest versions, so
# none can be pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc git make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 feedgym
WORKDIR /home/feedgym/src
COPY --chown=feedgym . .
# By number, so that a cluster can see that it is not root.
USER 10001
ENV VIRTUAL_ENV=/home/feedgym/venv PATH=/home/feedgym/venv/bin:$PATH HF_HUB_OFFLINE=1
RUN "$(command -v python3)" -m venv "$VIRTUAL_ENV" \
    && pip install --no-cache-dir --index-url "$TORCH_INDEX" torch==2.13.0 \
    && pip install --no-cache-dir -c constraints.txt ".[train]"
WORKDIR /home/feedgym
# Ray keeps its objects in shared memory: docker run --shm-size 2g feedgym demo --run runs/one
ENTRYPOINT ["feedgym"]
CMD ["--help"]
