# Stage 1: the binary. Dependencies are a layer of their own, rebuilt only when Cargo.toml or Cargo.lock change.
FROM rust:1.95-slim-bookworm AS build
ARG PROFILE=dist
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src tests/bench \
    && echo 'fn main() {}' > src/main.rs && touch src/lib.rs \
    && for bench in $(sed -n 's|^path = "\(tests/bench/.*\)"|\1|p' Cargo.toml); do echo 'fn main() {}' > "$bench"; done \
    && cargo build --profile "$PROFILE" --locked --bin ceoagent \
    && rm -rf src tests
COPY src src
COPY docs/errors.md docs/errors.md
COPY tests/bench tests/bench
# The stubs are newer than the checkout's files may be.
RUN touch src/main.rs src/lib.rs && cargo build --profile "$PROFILE" --locked --bin ceoagent

# What the image holds: the binary, the C library that it is linked to, certificates, and a user without rights.
RUN mkdir -p -m 0755 /image/usr/local/bin /image/etc/ssl/certs /image/app/data \
    && mkdir -m 1777 /image/tmp \
    && cp "target/$PROFILE/ceoagent" /image/usr/local/bin/ \
    && ldd "target/$PROFILE/ceoagent" | grep -o '/lib[^ ]*' | xargs -I{} cp -L --parents {} /image/ \
    && cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ \
    && echo 'hosts: files dns' > /image/etc/nsswitch.conf \
    && echo 'ceoagent:x:10001:10001::/app:/usr/local/bin/ceoagent' > /image/etc/passwd \
    && echo 'ceoagent:x:10001:' > /image/etc/group \
    && chown 10001:10001 /image/app/data

# Stage 2: what runs. No shell, no package manager.
FROM scratch
ARG VERSION=dev
LABEL org.opencontainers.image.title="ceoagent" \
      org.opencontainers.image.description="Decision memos by Claude, behind a job queue that never loses a question" \
      org.opencontainers.image.version="${VERSION}"
COPY --from=build /image/ /
WORKDIR /app
COPY prompts prompts
ENV PATH=/usr/local/bin DATA_DIR=/app/data PROMPTS_DIR=/app/prompts HOST=0.0.0.0 PORT=8000
USER 10001:10001
EXPOSE 8000
VOLUME /app/data
HEALTHCHECK --interval=10s --timeout=6s --start-period=5s --retries=3 CMD ["ceoagent", "healthcheck"]
ENTRYPOINT ["ceoagent"]
CMD ["serve"]
