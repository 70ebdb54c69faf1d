"""Pages that our modules write: their templates, in which a missing value is an error, and pictures inside them."""

import base64
import io
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import jinja2

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHARED = pathlib.Path(__file__).parent  # base.css, which every page includes


def load(package: str, name: str, filters: Mapping[str, Callable[..., str]] | None = None) -> jinja2.Template:
    """A template in the folder `templates` of a package; values are escaped in .html only.

    Args:
        package: for example "carbrand.data".
        name: of the file.
        filters: of the template's own, by name.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package), jinja2.FileSystemLoader(_SHARED)]),
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


def svg(figure: "Figure | None") -> str:
    """A figure as the source of an <img>, the same in every run; "" for none."""
    if figure is None:
        return ""
    import matplotlib  # here and not at the top: pages without figures need not wait for it

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "carbrand", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return data_uri(buffer.getvalue(), "svg+xml")
