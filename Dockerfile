# The picker as an image: docker build -t warmroute:0.1.0 .
FROM python:3.13-slim AS build
WORKDIR /source
COPY pyproject.toml hatch_build.py README.md ./
COPY protos protos
COPY src/warmroute src/warmroute
# The protobuf compiler is needed for the build only: pip keeps it in a place of its own and throws it away.
RUN python -m venv /opt/warmroute && /opt/warmroute/bin/pip install --no-cache-dir '.[kubernetes]'

FROM python:3.13-slim
COPY --from=build /opt/warmroute /opt/warmroute
# Nothing is written at run time, so the root file system may be read-only.
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
EXPOSE 9002 9003 9090
ENTRYPOINT ["/opt/warmroute/bin/warmroute", "serve"]
