"""A page to try what is served: an image in, boxes, labels, scores and stages out; it talks to the REST API alone."""

import importlib.resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.embedded.rest.json_messages import dumps
from serving.embedded.servables import Models

# Nothing but our own files runs or is asked; pictures come from the page itself.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # a newer server's page, not the browser's copy of an older one
}
# The page's only question that TF Serving's API has no path for.
MODELS_PATH = "/page/models"
_FILES = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/draw.js": ("draw.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
# What may be had without a token: it holds nothing that is served.
OPEN_PATHS = frozenset(_FILES)


def page_routes(models: Models) -> list[Route]:
    """Return the page's routes; it also asks for the names of the served models and their display thresholds."""

    def describe(_: Request) -> Response:
        thresholds: dict[str, dict[str, float]] = {}
        for name, version in models.loaded:
            servable = models.served(name).get(version)
            if servable is not None and servable.display_threshold is not None:
                thresholds.setdefault(name, {})[str(version)] = servable.display_threshold
        known = {"models": sorted(models.names), "thresholds": thresholds}
        return Response(dumps(known), headers=_HEADERS, media_type="application/json")

    return [*(_file(path, *file) for path, file in _FILES.items()), Route(MODELS_PATH, describe)]


def _file(path: str, name: str, media_type: str) -> Route:
    content = importlib.resources.files(__package__).joinpath(name).read_bytes()
    return Route(path, lambda _: Response(content, headers=_HEADERS, media_type=media_type))
