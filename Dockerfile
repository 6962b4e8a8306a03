# The image of every pod in k8s/base: docker build -t streamkv:0.1.0 .
# Ray's own image brings bash and wget, which KubeRay's probes need. `-cpu` for a cluster without GPUs.
ARG RAY_IMAGE=rayproject/ray:2.60.0-py311-gpu
FROM ${RAY_IMAGE}

COPY --chown=ray:users . /home/ray/streamkv
RUN pip install --no-cache-dir '/home/ray/streamkv[postgres]' \
    && python -c "import actors.spawn, pipeline.app, streamkv.engine"
ENV OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0
