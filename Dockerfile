# genret with the versions of its lock, for Ray on Kubernetes (jobs/kubernetes) or anywhere else.
#
#   docker build -t genret .                                        for GPUs: vLLM and DeepSpeed beside the rest
#   docker build -t genret:cpu --build-arg EXTRAS=s3 \
#     --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .       for CPUs, gigabytes smaller
FROM python:3.11-slim-bookworm

ARG EXTRAS=s3,vllm,deepspeed
ARG TORCH_INDEX=https://pypi.org/simple

# wget: with it KubeRay asks a pod whether it is well. g++: DeepSpeed,
# Triton and the search compile on the machine that runs them.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 ray

WORKDIR /home/ray/genret
# The packages first: they stay in their layer while only the code changes.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir genret && touch genret/__init__.py \
    && DS_BUILD_OPS=0 pip install --no-cache-dir --constraint constraints.txt --extra-index-url ${TORCH_INDEX} ".[${EXTRAS}]" \
    && rm -r genret
COPY genret genret
COPY jobs jobs
RUN pip install --no-cache-dir --no-deps . && chown -R ray:ray /home/ray

ENV PYTHONUNBUFFERED=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    RAY_USAGE_STATS_ENABLED=0
USER ray
ENTRYPOINT []
CMD ["genret", "--help"]
