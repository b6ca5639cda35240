# The proxy. With DATABASE_URL it uses that server, as in docker-compose.yml; without it an embedded Postgres
# keeps the streams under /var/lib/streamkeep, which then wants a volume.
FROM python:3.13-slim

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1

# A named account with a home: initdb looks its user up by name.
RUN useradd --system --create-home --home-dir /var/lib/streamkeep --shell /usr/sbin/nologin streamkeep

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY adapters adapters
COPY client client
COPY demos demos
COPY proxy proxy
COPY sessions sessions
COPY storage storage
RUN --mount=type=cache,target=/root/.cache/pip pip install '.[otel]'

USER streamkeep
WORKDIR /var/lib/streamkeep

# Inside a container the loopback interface is nobody else's. Whoever gets in needs a key: the first start prints one.
ENV STREAMKEEP_HOST=0.0.0.0 \
    STREAMKEEP_PORT=4000 \
    STREAMKEEP_DATA_DIR=/var/lib/streamkeep
EXPOSE 4000

HEALTHCHECK --interval=2s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"STREAMKEEP_PORT\"]}/ready', timeout=2)"]
CMD ["streamkeep", "serve", "--first-key"]
