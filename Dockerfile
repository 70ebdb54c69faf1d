# The server, without Beam and the other parts that only training needs:
#   docker build -t carbrand .
#   docker run -p 8501:8501 -v "$PWD/model:/model:ro" -v "$PWD/predictions:/predictions" carbrand --log /predictions
FROM python:3.12-slim

COPY requirements.lock /tmp/
COPY . /tmp/carbrand
RUN grep -v '^-e' /tmp/requirements.lock > /tmp/versions \
 && pip install --no-cache-dir -c /tmp/versions '/tmp/carbrand[serve]' \
 && rm -r /tmp/* \
 && useradd --create-home carbrand \
 && install -d -o carbrand /predictions

USER carbrand
WORKDIR /home/carbrand
EXPOSE 8501
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8501/healthz')"]
# docker stop sends SIGTERM: requests are answered for 5 more seconds, then those that were accepted.
STOPSIGNAL SIGTERM
ENTRYPOINT ["carbrand", "serve", "--model", "/model", "--host", "0.0.0.0"]
