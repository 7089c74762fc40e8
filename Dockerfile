# Maskery's commands in a container, for a CPU or an NVIDIA GPU:
#
#   docker build --tag maskery .                              # CPU
#   docker build --tag maskery --build-arg DEVICE=cuda .      # PyPI's PyTorch, which brings CUDA
#   docker run --rm --volume "$PWD:/work" maskery train text notes.txt --model minilm
#   docker run --rm --gpus all --volume "$PWD:/work" maskery train text notes.txt --model minilm
#
# The host's user writes the results: add --user "$(id -u):$(id -g)".
FROM python:3.11-slim

ARG DEVICE=cpu
WORKDIR /maskery
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
# PyTorch first and alone: its own index has nothing else in versions of constraints.txt.
RUN if [ "$DEVICE" = cpu ]; then index="--index-url https://download.pytorch.org/whl/cpu"; fi \
    && pip install --no-cache-dir $index "$(grep '^torch==' constraints.txt)" \
    && pip install --no-cache-dir --constraint constraints.txt \
        '.[quickstart,vision,report,playground,probe,words]'

WORKDIR /work
ENV HOME=/tmp MASKERY_CACHE=/work/.maskery
ENTRYPOINT ["maskery"]
CMD ["--help"]
