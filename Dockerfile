# A box with an NVIDIA GPU: training, ManiSkill's GPU physics and renderer, export.
#   docker build -t robot-rl .
#   docker run --rm --gpus all -v $PWD/runs:/work/runs robot-rl robot-rl doctor
# Not built by us yet: no machine with Docker or a GPU was at hand (docs/limits.md). tests/test_packaging.py checks that
# every file that it copies and every extra that it names is there.
FROM python:3.11-slim-bookworm

# What ManiSkill's renderer needs beside the driver, which the NVIDIA container runtime mounts.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics
RUN apt-get update && apt-get install -y --no-install-recommends \
      libvulkan1 libgl1 libglib2.0-0 libegl1 libxext6 g++ git \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/robot-rl
COPY pyproject.toml README.md LICENSE ./
COPY robot_rl robot_rl
COPY envs envs
COPY policies policies
COPY hardware hardware
COPY configs configs
COPY sim_assets sim_assets
# PyPI's torch has CUDA; constraints/py311.txt pins the CPU build and is left out for that reason.
RUN pip install --no-cache-dir '.[train,sim,pusht,export-gpu,baselines,data,serve]'

RUN useradd --create-home robot && mkdir /work && chown robot /work
USER robot
WORKDIR /work
CMD ["robot-rl", "--help"]
