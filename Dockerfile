# docker build -t knetsim .
# docker run -it --privileged --rm knetsim
#
# With the real components beside ours (their published images are the last stage):
# docker build --target real -t knetsim-real . && docker run -it --privileged --rm knetsim-real up --impl flannel=real

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY scripts scripts
RUN scripts/deps
COPY . .
RUN cargo build --release --workspace --locked \
    && mkdir /out \
    && cp target/release/knetsim target/release/flannel-rs target/release/cni-plugin target/release/kproxy-rs \
        target/release/ingress-rs target/release/interconnect-rs /out/

FROM debian:bookworm-slim AS knetsim
RUN printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d \
    && apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        etcd-server etcd-client nftables iproute2 nginx-light containernetworking-plugins libnftnl11 libmnl0 \
        iputils-ping net-tools curl wget tcpdump conntrack iperf3 procps iptables \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/ /usr/local/bin/
COPY conf /usr/local/share/knetsim/conf
COPY README.md docs /usr/local/share/doc/knetsim/
ENTRYPOINT ["knetsim"]
CMD ["up"]

# The real flanneld, the flannel CNI plugin and skupper-router. The images can be named otherwise, to take another version
# or another place: --build-arg FLANNEL_IMAGE=…
ARG FLANNEL_IMAGE=flannel/flannel:v0.25.7
ARG FLANNEL_CNI_IMAGE=flannel/flannel-cni-plugin:v1.5.1-flannel2
FROM ${FLANNEL_IMAGE} AS flannel
FROM ${FLANNEL_CNI_IMAGE} AS flannel-cni
FROM knetsim AS real
COPY --from=flannel /opt/bin/flanneld /usr/local/bin/flanneld
COPY --from=flannel-cni /flannel /opt/cni/bin/flannel

# What `docker build` builds when no target is named.
FROM knetsim
