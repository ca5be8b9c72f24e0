# CUDA: docker build -t facessl .
# CPU:  docker build -t facessl --build-arg TORCH_INDEX=URL .     URL: the address of PyTorch's CPU wheels, pytorch.org has it
# Run:  docker run --rm --gpus all --shm-size 8g --user "$(id -u):$(id -g)" -v "$PWD:/work" facessl pretrain faces/ --out runs/mine
#       (without --gpus on a CPU; loader processes hand over batches in shared memory)
FROM python:3.12-slim
ARG TORCH_INDEX=
ENV HOME=/tmp PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY facessl facessl
RUN pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} .
RUN useradd --uid 1000 --create-home user && install -d -o user /work
USER 1000
WORKDIR /work
ENTRYPOINT ["facessl"]
CMD ["--help"]
