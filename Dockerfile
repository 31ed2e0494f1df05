# The gateway as a small image: one binary, without a shell and without root.
#
#   docker build --build-arg TOLLGATE_COMMIT="$(git rev-parse --short=12 HEAD)" -t tollgate .

FROM rust:1-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build

# The dependencies are built first, with empty sources: this layer is built again only when the dependencies change.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src benches/load \
    && echo 'fn main() {}' | tee src/main.rs benches/load/main.rs \
    && touch src/lib.rs \
    && cargo build --release --locked --bin tollgate \
    && rm -r src

COPY build.rs ./
COPY src src
ARG TOLLGATE_COMMIT=unknown
# cargo compares times of files, and the sources may be older than the empty files above.
RUN touch src/main.rs src/lib.rs \
    && cargo build --release --locked --bin tollgate

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /build/target/release/tollgate /usr/local/bin/tollgate
# deploy/systemd/tollgate.service has the same setting and the reason for it.
ENV MIMALLOC_PURGE_DELAY=60000
EXPOSE 8080 9090
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 CMD ["/usr/local/bin/tollgate", "health"]
ENTRYPOINT ["/usr/local/bin/tollgate"]
CMD ["run", "-c", "/etc/tollgate/tollgate.yaml"]
