# Stage 1: the binary. Dependencies are a layer of their own, rebuilt only when Cargo.toml or Cargo.lock change.
FROM rust:1.95-slim-bookworm AS build
# For jemalloc.
RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
RUN mkdir -p src tests/bench \
    && echo 'fn main() {}' > src/main.rs && touch src/lib.rs \
    && echo 'fn main() {}' > tests/bench/http.rs \
    && cargo build --release --locked \
    && rm -rf src tests/bench
COPY src src
COPY tests/bench tests/bench
# The stubs are newer than the checkout's files may be.
RUN touch src/main.rs src/lib.rs && cargo build --release --locked

# Stage 2: what runs.
FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY --from=build /build/target/release/ceoagent /usr/local/bin/ceoagent
COPY prompts prompts
ENV DATA_DIR=/app/data PROMPTS_DIR=/app/prompts HOST=0.0.0.0 PORT=8000
EXPOSE 8000
VOLUME /app/data
HEALTHCHECK --interval=10s --timeout=6s --start-period=5s --retries=3 CMD ["ceoagent", "healthcheck"]
ENTRYPOINT ["ceoagent"]
CMD ["serve"]
