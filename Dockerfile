# The llmsched service: gateway, scheduler and workers. Engines run in containers of their own.
#
#   docker build -t llmsched .
#   docker run -p 8000:8000 -v llmsched:/data llmsched serve --host 0.0.0.0 --emulate 2
#
# All it writes goes to /data (the store) and /tmp, so the root file system may be read-only.

ARG PYTHON_IMAGE=python:3.12.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/llmsched
WORKDIR /src
# The dependencies are a layer of their own: a change of our code does not install them again.
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > /tmp/requirements.txt \
    && /opt/llmsched/bin/pip install --requirement /tmp/requirements.txt
COPY README.md LICENSE ./
COPY llmsched llmsched
COPY apps apps
RUN pip wheel --no-deps --wheel-dir /tmp/wheel . \
    && /opt/llmsched/bin/pip install --no-deps /tmp/wheel/llmsched-*.whl \
    && /opt/llmsched/bin/pip check

FROM ${PYTHON_IMAGE}
RUN groupadd --gid 10001 llmsched \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin llmsched \
    && install --directory --owner 10001 --group 10001 --mode 0750 /data
COPY --from=build /opt/llmsched /opt/llmsched
ENV PATH=/opt/llmsched/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    LLMSCHED_STORE=sqlite:////data/llmsched.db
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
# http.client, because urllib would follow an HTTP_PROXY of the environment to ask for our own port.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import sys; from http.client import HTTPConnection as C; c = C('127.0.0.1', 8000, timeout=2); c.request('GET', '/health'); sys.exit(c.getresponse().status != 200)"]
# The store is set in the environment and not here, so that LLMSCHED_STORE=postgresql://… is all it takes to change it.
ENTRYPOINT ["llmsched"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
