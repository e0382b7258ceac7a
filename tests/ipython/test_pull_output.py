"""What a pull leaves in a notebook."""

from __future__ import annotations

from typing import Any

import pytest

from nbcontainer.testing.engine import pull_events
from nbcontainer.widgets.progress import HtmlDisplay, PullProgress, WidgetDisplay


@pytest.mark.parametrize("picture", [HtmlDisplay, WidgetDisplay])
def test_notebook_output_is_updated_and_ends_static(shell, monkeypatch, picture):
    """One output, updated, whose last form is plain text and HTML without a widget."""
    published: list[tuple[dict[str, Any], dict[str, Any]]] = []
    monkeypatch.setattr(shell.display_pub, "publish", lambda data, **options: published.append((data, options)))
    with PullProgress(picture(), interval=0) as listener:
        for event in pull_events():
            listener(event)
    ids = {options["transient"]["display_id"] for _, options in published}
    assert len(ids) == 1
    assert [options.get("update", False) for _, options in published] == [False] + [True] * (len(published) - 1)
    assert all({"text/html", "text/plain"} <= set(data) for data, _ in published)
    last, _ = published[-1]
    assert set(last) == {"text/html", "text/plain"}
    assert last["text/plain"].startswith("pulled debian:latest")
    if picture is WidgetDisplay:
        assert "application/vnd.jupyter.widget-view+json" in published[0][0]
