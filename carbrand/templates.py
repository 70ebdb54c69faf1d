"""Pages that our modules write: their templates, in which a missing value is an error, and pictures inside them."""

import base64
from collections.abc import Callable, Mapping

import jinja2


def load(package: str, name: str, filters: Mapping[str, Callable[..., str]] | None = None) -> jinja2.Template:
    """A template in the folder `templates` of a package; values are escaped in .html only.

    Args:
        package: for example "carbrand.data".
        name: of the file.
        filters: of the template's own, by name.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=jinja2.select_autoescape(),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(filters or {})
    return environment.get_template(name)


def data_uri(content: bytes, kind: str = "jpeg") -> str:
    """A picture as the source of an <img>; `kind` is that of its media type, image/KIND."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
