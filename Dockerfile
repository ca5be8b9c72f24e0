# CUDA: docker build -t facessl .                      (docker run --gpus all ...)
# CPU:  docker build -t facessl --build-arg TORCH_INDEX=URL .     URL: the address of PyTorch's CPU wheels, pytorch.org has it
# Run:  docker run --rm -v "$PWD:/work" facessl pretrain faces/ --out runs/mine
FROM python:3.12-slim
ARG TORCH_INDEX=
RUN useradd --create-home user
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY facessl facessl
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision \
 && pip install --no-cache-dir .
USER user
WORKDIR /work
ENTRYPOINT ["facessl"]
CMD ["--help"]
