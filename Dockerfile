# The workflow with all it needs, from requirements.lock; docs/workflow.md tells how to use it.
#
#   docker build -t oscillations .                                   torch as the lock has it: a GPU where the host has a driver
#   docker build -t oscillations:cpu --build-arg TORCH_INDEX=URL .   without the GPU's libraries: torch from an index of CPU builds
#   docker build -t oscillations --build-arg PYTHON=3.11 .
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

# git tells a run's commit; versions are Debian's of the base image
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/* \
    && git config --system safe.directory '*'

WORKDIR /opt/oscillations
COPY requirements.lock workflow/container/install.sh ./
ARG TORCH_INDEX=lock
RUN sh install.sh lock

COPY . .
RUN sh workflow/container/install.sh workflow

# any user may run it, and writes only where it was started; Snakemake asks for a name, which a number alone has not
ENV HOME=/tmp USER=study MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /study
CMD ["snakemake", "--snakefile", "/opt/oscillations/Snakefile", "--directory", "/study", "--cores", "2", "all"]
