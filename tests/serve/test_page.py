"""The playground's files as the service gives them out; tests/serve/test_playground.py opens them in a browser."""

import re
import tomllib
from pathlib import Path

import pytest

from pasta_ray.serve.page import FOLDER, MEDIA_TYPES
from tests.serve.test_security import KEYS, one

FILES = sorted(path.name for path in FOLDER.iterdir())
ROUTES = ["/", *(f"/playground/{name}" for name in FILES)]


@pytest.mark.parametrize("keys", [frozenset(), KEYS], ids=["no keys", "keys"])
def test_the_page_needs_no_key_and_its_files_are_there(keys: frozenset[str]) -> None:
    for route in ROUTES:
        response = one(keys, method="GET", url=route)
        assert response.status_code == 200
        assert response.headers["content-type"].split(";")[0] == MEDIA_TYPES[Path(route).suffix or ".html"]
        assert response.headers["x-content-type-options"] == "nosniff"
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
    assert one(keys, method="HEAD", url="/").status_code == 200


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fpage.py", "..%2f..%2fpyproject.toml", ".", "%2e%2e"])
def test_nothing_else_is_given_out(name: str) -> None:
    assert one(method="GET", url=f"/playground/{name}").status_code == 404


def test_without_keys_the_page_is_for_this_machine_alone() -> None:
    """Guards the rule that a service without keys answers nobody else; with keys a page without secrets may be read."""
    assert one(host="10.0.0.9", method="GET", url="/").status_code == 403
    assert one(KEYS, host="10.0.0.9", method="GET", url="/").status_code == 200
    assert one(KEYS, host="10.0.0.9", method="GET", url="/v1/models").status_code == 401


def test_the_page_works_without_any_other_host() -> None:
    """Guards machines without a network, and readers whom nobody else should see; whatever is named must be there."""
    texts = {name: (FOLDER / name).read_text(encoding="utf-8") for name in FILES}
    for name, text in texts.items():
        hosts = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'`]*", text)) - {"http://www.w3.org/2000/svg"}
        assert not hosts, name
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|\sstyle=|\son\w+=", text
        ), name
    named = set(re.findall(r'"(?:playground|\.)/([\w.-]+)"', "".join(texts.values())))
    assert named | {"index.html"} == set(FILES)


def test_the_page_is_in_the_package() -> None:
    """Guards installed packages, from which files that setuptools is not told of are missing."""
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert "serve/playground/*" in settings["tool"]["setuptools"]["package-data"]["pasta_ray"]
