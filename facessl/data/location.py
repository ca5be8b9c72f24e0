"""The location of a source: its absolute address, without secrets, and folders inside it."""

import os
import re
from pathlib import Path

from facessl.core.errors import ConfigError, FaceSSLError
from facessl.core.escape import with_slashes
from facessl.data.source import STREAM, Source, parse
from facessl.data.subset import Subset


def absolute(spec: str) -> str:
    """`spec` with its local paths absolute; what cannot be read is returned as it is."""
    if os.path.exists(os.path.expanduser(spec)):
        return _absolute(spec)
    try:
        name, path, options = parse(spec)
    except FaceSSLError:  # reported when the source is opened
        return spec
    if not path or path.startswith("{") or STREAM.match(path):
        return spec
    head = next(h for h in (f"{name}:", f"{name.replace('_', '-')}:", "") if spec.startswith(h + path))
    typed = [f"{key}={_absolute(value) if key == 'root' else value}" for key, value in options.items()]
    return head + _absolute(path) + ("?" + "&".join(typed) if typed else "")


def _absolute(path: str) -> str:
    return with_slashes(os.path.abspath(os.path.expanduser(path)))


def redacted(spec: str) -> str:
    """`spec` without what may be secret: a command, and user, password, parameters and query of a URL."""
    spec = re.sub(r"(^|[:{,])pipe:.*", r"\1pipe:...", spec, flags=re.DOTALL | re.IGNORECASE)
    scheme, slashes, rest = spec.partition("://")
    if not slashes:
        return spec
    place, *parameters = re.split("([?#;])", rest, maxsplit=1)
    if "@" in "".join(parameters):  # a password may hold any of these signs, a slash too
        return f"{scheme}://..."
    place = re.sub(".*@", "...@", place, flags=re.DOTALL)
    return f"{scheme}://{place}" + (f"{parameters[0]}..." if parameters else "")


def shareable(spec: str) -> str:
    """`spec` as it may be published: redacted, and of a local path the last name alone."""
    return re.sub(r"(^|[:={,])/(?!/)(?:[^?&/]*/)*", r"\1", redacted(spec))


def refuse_inside(folder: Path, source: Source, what: str) -> None:
    """ConfigError if `folder`, for `what`, lies in a folder all of whose images `source` or its whole takes."""
    whole = source.source if isinstance(source, Subset) else source
    root = getattr(whole, "root", None)
    if root is not None and folder.expanduser().resolve().is_relative_to(Path(root).resolve()):
        raise ConfigError(
            f"{what} cannot lie inside the images ({folder} is in {root}): name a folder outside with --out"
        )
