# The picker as an image: docker build -t warmroute:0.1.0 .
# The laboratory, for load from inside a cluster: docker build --target lab -t warmroute-lab:0.1.0 .

# The digest is that of the multi-platform index of python:3.13-slim (3.13.15, Debian 13).
ARG PYTHON=python:3.13-slim@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b

FROM ${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# For the compiled form of what every request passes.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /source
# The dependencies first: this layer stays until the lock changes. pip refuses a file whose hash the lock does not have.
COPY requirements/image.txt requirements/build.txt requirements/
RUN python -m venv /opt/warmroute \
 && /opt/warmroute/bin/pip install --require-hashes --requirement requirements/image.txt \
 && pip install --require-hashes --requirement requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY src/warmroute src/warmroute
RUN HATCH_BUILD_HOOK_ENABLE_MYPYC=true pip wheel --no-deps --no-build-isolation --wheel-dir wheels . \
 && /opt/warmroute/bin/pip install --no-deps --no-index wheels/warmroute-*.whl

FROM build AS build-lab
COPY requirements/demo.txt requirements/
RUN /opt/warmroute/bin/pip install --require-hashes --requirement requirements/demo.txt
COPY lab lab
COPY src/warmroute_lab src/warmroute_lab
RUN pip wheel --no-deps --no-build-isolation --wheel-dir wheels ./lab \
 && /opt/warmroute/bin/pip install --no-deps --no-index wheels/warmroute_lab-*.whl

FROM ${PYTHON} AS lab
COPY --from=build-lab /opt/warmroute /opt/warmroute
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
ENTRYPOINT ["/opt/warmroute/bin/warmroute"]

FROM ${PYTHON}
COPY --from=build /opt/warmroute /opt/warmroute
# Nothing is written at run time, so the root file system may be read-only.
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
EXPOSE 9002 9003 9090
ENTRYPOINT ["/opt/warmroute/bin/warmroute", "serve"]
