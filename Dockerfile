# The gateway, the worker and management commands: one image, another command for each.
FROM python:3.11-slim

# requirements-demo.txt adds what the demo backend needs (some 700 MB).
ARG REQUIREMENTS=requirements.txt

ENV PYTHONUNBUFFERED=1 \
    TESSERA_STATIC_ROOT=/srv/static \
    TESSERA_SPOOL_DIR=/srv/spool

WORKDIR /app
COPY ${REQUIREMENTS} ./
RUN pip install --no-cache-dir --no-deps --only-binary :all: --require-hashes -r ${REQUIREMENTS}

COPY . .
RUN TESSERA_DEBUG=1 DATABASE_URL=postgresql:///build REDIS_URL=redis://build \
        python manage.py collectstatic --noinput --verbosity 0 \
    && useradd --no-create-home --shell /usr/sbin/nologin tessera \
    && install --directory --owner tessera --mode 700 /srv/spool
VOLUME /srv/spool

USER tessera
EXPOSE 8000
CMD ["python", "-m", "gateway.serve", "--host", "0.0.0.0", "--port", "8000"]
