import asyncio
import types

import pytest
from starlette.responses import StreamingResponse
from starlette.routing import Route

from carbrand.serving import app
from carbrand.serving.telemetry import Telemetry


async def fails(_):
    raise RuntimeError("a bug")


async def fails_late(_):
    async def parts():
        yield b"half"
        raise RuntimeError("a bug")

    return StreamingResponse(parts())


@pytest.mark.parametrize(("endpoint", "status"), [(fails, 500), (fails_late, 200)])
def test_a_bug_is_logged_counted_and_answered(caplog, endpoint, status):
    telemetry = Telemetry()
    house = types.SimpleNamespace(routes=lambda: [Route("/predict", endpoint)], is_draining=False)
    server = app.make(house, telemetry, app.Settings(), lifespan=None)
    scope = {"type": "http", "method": "GET", "path": "/predict", "headers": [], "query_string": b""}
    sent = []

    async def receive():
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    asyncio.run(server(scope, receive, send))
    starts = [message for message in sent if message["type"] == "http.response.start"]
    assert [message["status"] for message in starts] == [status]
    assert "GET /predict" in caplog.text
    assert "a bug" in caplog.text
    counted = telemetry.text().decode()
    assert f'carbrand_requests_total{{path="/predict",status="{status}"}} 1.0' in counted
