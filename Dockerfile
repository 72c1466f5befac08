# Stages: deps -> build -> test -> runtime. The package lists are those of install_packages.sh, so
# what CI, a developer and this image build with cannot drift apart. No model is inside.
#   docker build -t morphserve:0.1.0 .              the server
#   docker build --build-arg CUDA=ON -t morphserve:0.1.0-cuda .
#                                                   for H100 and H200 too, 0.5 GB larger: cuBLASLt
#   docker build --target test -t morphserve-test . builds and runs every test
ARG CUDA=OFF

FROM debian:12-slim AS deps
ARG CUDA
WORKDIR /src
COPY deploy/common.sh deploy/install_packages.sh deploy/requirements*.txt deploy/
RUN if [ "${CUDA}" = ON ]; then toolkit=--cuda; fi \
 && deploy/install_packages.sh --no-model ${toolkit:+"${toolkit}"} && rm -rf /var/lib/apt/lists/*

FROM deps AS build
ARG CUDA
# --build-arg COMMIT="$(git rev-parse --short=12 HEAD)": what --version names; .git is not copied.
ARG COMMIT=unknown
COPY CMakeLists.txt CMakePresets.json ./
COPY kernels kernels
COPY engine engine
COPY morph morph
COPY proto proto
COPY server server
RUN cmake --preset release -DMORPHSERVE_TESTS=OFF -DMORPHSERVE_BENCH=OFF \
      -DMORPHSERVE_COMMIT="${COMMIT}" -DMORPHSERVE_CUDA="${CUDA}" \
 && cmake --build build/release --target morphserve morphctl \
 && strip build/release/bin/morphserve build/release/bin/morphctl \
 && mkdir build/release/lib \
 && if [ "${CUDA}" = ON ]; then \
      cp .cache/cuda/nvidia/cu13/lib/libcublasLt.so.13 build/release/lib/; fi

FROM build AS test
COPY . .
RUN tests/run.sh

FROM debian:12-slim AS runtime
LABEL org.opencontainers.image.title="morphserve" \
      org.opencontainers.image.description="gRPC inference server for hybrid-attention language models" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0"
RUN --mount=type=bind,source=deploy,target=/deploy \
    /deploy/install_packages.sh --runtime && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/build/release/bin/morphserve /src/build/release/bin/morphctl /usr/local/bin/
# What a CUDA build opens at run time, or nothing; the driver comes from the machine.
COPY --from=build /src/build/release/lib/ /usr/local/lib/
RUN ldconfig
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 65532:65532
EXPOSE 8001 8002 8003
# A container that is loading is not ill: three minutes before a failed probe counts.
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 \
  CMD ["/usr/local/bin/morphserve", "--probe=127.0.0.1:8001,readiness"]
ENTRYPOINT ["/usr/local/bin/morphserve"]
CMD ["--config", "/etc/morphserve/config.yaml"]
