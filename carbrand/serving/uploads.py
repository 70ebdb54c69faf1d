"""Bodies of requests, read with limits: of size, of time, and of the number of photos."""

import asyncio
import dataclasses

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

_FORM = "multipart/form-data"
_RAW = ("image/", "application/octet-stream")
_MAX_DISCARDED_BYTES = 2**30  # of a body that is too large, so that its sender gets to read the answer


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may take.

    Attributes:
      body_bytes: Of the body; base64 makes photos larger by a third.
      body_timeout_s: For the whole body to arrive, in seconds.
      photos: In one request.
    """

    body_bytes: int = 64 * 2**20
    body_timeout_s: float = 30.0
    photos: int = 64


async def read_body(request: Request, limits: Limits) -> bytes:
    """The whole body.

    Raises:
      HTTPException: 400 if it is empty or the client has gone, 408 if it takes too long, 413 if it is too large.
    """
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            async for part in request.stream():
                size += len(part)
                if size <= limits.body_bytes:
                    parts.append(part)
                elif size > _MAX_DISCARDED_BYTES:
                    break
    except TimeoutError as error:
        raise HTTPException(408, f"the body took longer than {limits.body_timeout_s:g} s to arrive") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the client has gone") from error
    if size > limits.body_bytes:
        raise HTTPException(413, f"the body is larger than {limits.body_bytes} bytes")
    if not size:
        raise HTTPException(400, "the body is empty: send a photo")
    return b"".join(parts)


async def read_photos(request: Request, limits: Limits) -> list[bytes]:
    """The photos in an upload: the body itself, or the files of a form.

    Raises:
      HTTPException: As `read_body`; 400 if it is no form or holds no photo, 415 if it is something else.
    """
    kind = request.headers.get("content-type", _RAW[1]).lower()
    if not kind.startswith((_FORM, *_RAW)):
        raise HTTPException(415, f"content type {kind!r}: send a form ({_FORM}) or a photo (image/jpeg, …)")
    body = await read_body(request, limits)
    return await _files_of_form(request, body, limits) if kind.startswith(_FORM) else [body]


async def _files_of_form(request: Request, body: bytes, limits: Limits) -> list[bytes]:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        async with Request(request.scope, receive).form(max_files=limits.photos, max_fields=limits.photos) as form:
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            photos = [await file.read() for file in files]
    except HTTPException as error:
        raise HTTPException(400, f"the form cannot be read: {error.detail}") from error
    if not photos:
        raise HTTPException(400, "the form holds no file: send the photo as a file")
    return photos
