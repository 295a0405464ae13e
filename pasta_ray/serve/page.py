"""The playground: a page of plain files that asks the API as any client does."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import Response
from starlette.exceptions import HTTPException

FOLDER = Path(__file__).with_name("playground")
PREFIX = "/playground/"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",  # with no policy that makes any: text can never become HTML or code
    "trusted-types": "'none'",
}
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def is_page(path: str) -> bool:
    """Whether a route is the page's own: files that are the same for everybody."""
    return path == "/" or path.startswith(PREFIX)


def add_page(app: FastAPI) -> None:
    """Serve the page at ``/`` and its files beside it."""
    files = {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.suffix in MEDIA_TYPES}

    def respond(name: str) -> Response:
        return Response(files[name], media_type=MEDIA_TYPES[Path(name).suffix], headers=HEADERS)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def index() -> Response:
        return respond("index.html")

    @app.api_route(PREFIX + "{name}", methods=["GET", "HEAD"], include_in_schema=False)
    async def file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, "Not Found")
        return respond(name)
